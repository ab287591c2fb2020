// A client of this endpoint's own API, /v1, and of nothing else. What anybody has written is shown
// as text, never as markup. The key is in this tab's session storage and in a header, nowhere else.

const MOST_MS = 1000; // between two looks at a video that is made: who watches wants to see steps
const REFRESH_MS = 10_000; // what other programs ask for with the same key
const STORED = "rushes-key";
const find = (id) => document.getElementById(id);
const cards = new Map(); // by the video's id
const asksKey = "asksKey" in document.body.dataset;
let key = sessionStorage.getItem(STORED) ?? "";
let away = ""; // what was told while the endpoint gave no answer
let unanswered = null; // what was sent without an answer, and its idempotency key

class Told extends Error {
  constructor(message, status = 0, retryS = 5) {
    super(message);
    Object.assign(this, { status, retryS });
  }
}

async function call(path, options = {}) {
  const headers = { ...options.headers, ...(key && { Authorization: `Bearer ${key}` }) };
  let answer;
  try {
    answer = await fetch(`v1/${path}`, { ...options, headers, cache: "no-store", credentials: "omit" });
  } catch {
    throw new Told("The endpoint gives no answer. Is it running?");
  }
  if (answer.ok) {
    if (away && find("alert").textContent === away) find("alert").textContent = "";
    away = "";
    return answer;
  }
  const said = await answer.json().catch(() => null);
  const retryS = Number(answer.headers.get("retry-after")) || 5;
  throw new Told(said?.error?.message ?? `The endpoint answers ${answer.status}.`, answer.status, retryS);
}

function say(text) {
  find("alert").textContent = "";
  find("status").textContent = text;
}

function tell(error) {
  if (!(error instanceof Told)) throw error;
  if (!error.status || error.status >= 500) away = error.message;
  find("status").textContent = "";
  const told = error.status === 401 ? "This is no API key of this endpoint." : error.message;
  if (find("alert").textContent !== told) find("alert").textContent = told;
  if (error.status === 401) askForKey();
}

/** Do what a button is for; what goes wrong is told. */
const act = (work) => (event) => {
  event.preventDefault();
  find("alert").textContent = "";
  work(event).catch(tell);
};

// ---- the key
function askForKey() {
  key = "";
  sessionStorage.removeItem(STORED);
  for (const id of [...cards.keys()]) drop(id);
  find("desk").hidden = find("leave").hidden = true;
  find("enter").hidden = false;
  find("key").select();
  find("key").focus();
}

async function open() {
  const { data: [model] } = await (await call("videos/models")).json();
  if (asksKey) sessionStorage.setItem(STORED, key);
  offer(model);
  find("key").value = "";
  find("enter").hidden = true;
  find("desk").hidden = false;
  find("leave").hidden = !asksKey;
  find("prompt").focus();
  say("");
  await list();
}

// ---- what can be asked for
function offer({ id, description, limits, defaults }) {
  find("model").textContent = `${id}: ${description}`;
  const step = limits.size_multiple;
  for (const side of ["width", "height"]) {
    const most = Math.floor(limits.max_side / step) * step;
    Object.assign(find(side), { min: Math.ceil(limits.min_side / step) * step, max: most, step, value: defaults[side] });
  }
  find("size-note").textContent =
    `Sides are multiples of ${step}; a frame has at most ${limits.max_pixels.toLocaleString("en")} pixels.`;
  const lengths = find("num_frames");
  lengths.replaceChildren();
  for (let frames = 1; frames <= limits.max_frames; frames += limits.frame_multiple) {
    if (frames < limits.min_frames) continue;
    const chosen = frames === defaults.num_frames;
    lengths.add(new Option(`${(frames / defaults.fps).toFixed(1)} s, ${frames} frames`, frames, chosen, chosen));
  }
  find("opening").hidden = find("image-note").hidden = !limits.max_seen_frames;
  find("prompt").maxLength = find("negative_prompt").maxLength = limits.max_prompt_chars;
  find("negative_prompt").placeholder = defaults.negative_prompt ?? "";
  Object.assign(find("num_inference_steps"), { max: limits.max_steps, placeholder: defaults.num_inference_steps });
  Object.assign(find("guidance_scale"), { max: limits.max_guidance_scale, placeholder: defaults.guidance_scale });
}

async function ask() {
  const form = find("ask");
  if (form.ariaBusy === "true") return;
  const filled = [...new FormData(form)].filter(([, value]) => value.trim());
  const size = `${find("width").value}x${find("height").value}`;
  const [image] = find("image").files;
  const begins = image && { input_reference: { image_url: await readImage(image) } };
  const body = JSON.stringify({ ...Object.fromEntries(filled), size, ...begins });
  // What got no answer may have been accepted: sent again, it is the same call.
  if (unanswered?.body !== body) unanswered = { body, once: crypto.getRandomValues(new Uint32Array(4)).join("-") };
  const headers = { "Content-Type": "application/json", "Idempotency-Key": unanswered.once };
  form.ariaBusy = "true";
  try {
    const video = await (await call("videos", { method: "POST", headers, body })).json();
    unanswered = null;
    say("Your video is in the queue.");
    show(video);
  } finally {
    form.ariaBusy = "false";
  }
}

function readImage(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(new Told(`${file.name} can't be read.`, 400));
    reader.readAsDataURL(file);
  });
}

// ---- the videos
async function list(after) {
  const page = await (await call(`videos?limit=20${after ? `&after=${after}` : ""}`)).json();
  find("older").hidden = !page.has_more;
  find("older").onclick = act(() => list(page.last_id));
  page.data.forEach(show);
  count();
}

async function refresh() {
  if (document.hidden || find("desk").hidden) return;
  const page = await (await call("videos?limit=20")).json();
  page.data.filter(({ id }) => !cards.has(id)).forEach(show);
}

function count() {
  const states = [...cards.values()].map((card) => card.video.status);
  const counted = [["in_progress", "in progress"], ["queued", "queued"], ["completed", "completed"], ["failed", "failed"]]
    .map(([status, word]) => [states.filter((each) => each === status).length, word])
    .filter(([number]) => number);
  find("tally").textContent = counted.map((each) => each.join(" ")).join(", ") || "None yet.";
  if (!find("older").hidden) find("tally").textContent += ", of those shown";
}

/** Show how a video goes, the newest first; look again for as long as it is under way. */
function show(video) {
  let card = cards.get(video.id);
  if (!card) {
    const item = find("video").content.cloneNode(true).firstElementChild;
    card = { item, part: (selector) => item.querySelector(selector), url: null };
    cards.set(video.id, card);
    const name = video.prompt.slice(0, 80);
    card.part("h3").textContent = video.prompt;
    card.part("h3").title = video.prompt;
    card.part(".facts").textContent = `${video.size}, ${video.seconds} s, asked for ${new Date(1000 * video.created_at).toLocaleString()}`;
    card.part("progress").ariaLabel = `Progress: ${name}`;
    card.part(".play").ariaLabel = `Play: ${name}`;
    card.part(".play").onclick = act(() => play(card));
    card.part(".delete").onclick = act(() => remove(card));
    card.part(".save").ariaLabel = `Save the file: ${name}`;
    item.dataset.id = video.id; // ids sort by time
    find("videos").insertBefore(item, [...find("videos").children].find((each) => each.dataset.id < video.id) ?? null);
  }
  const before = card.video?.status;
  card.video = video;
  const { status, progress } = video;
  const underWay = status === "queued" || status === "in_progress";
  const words = { queued: "Queued", in_progress: `Rendering, ${progress} %`, completed: "Completed", failed: `Failed: ${video.error?.message}` };
  card.part(".state").className = `state ${status}`;
  card.part(".state span").textContent = words[status];
  card.part("progress").hidden = !underWay;
  card.part("progress").value = progress;
  card.part(".play").hidden = status !== "completed" || card.url;
  card.part(".delete").textContent = underWay ? "Cancel" : "Delete";
  card.part(".delete").ariaLabel = `${underWay ? "Cancel" : "Delete"}: ${video.prompt.slice(0, 80)}`;
  if (status === "completed" && before !== status) still(card).catch(() => {}); // it can do without
  if (before && before !== status && !underWay) say(`${words[status]}: ${video.prompt.slice(0, 80)}`);
  if (underWay && !card.timer) look(card, 250);
  count();
}

function look(card, afterMs) {
  card.timer = setTimeout(async () => {
    try {
      const answer = await call(`videos/${card.video.id}`);
      const video = await answer.json();
      if (!cards.has(video.id)) return;
      card.timer = null;
      const saidMs = Number(answer.headers.get("openai-poll-after-ms")) || MOST_MS;
      const nextMs = video.status === "queued" ? saidMs : Math.min(saidMs, MOST_MS);
      if (video.status === "queued" || video.status === "in_progress") look(card, nextMs);
      show(video);
    } catch (error) {
      if (error.status === 404) return drop(card.video.id); // deleted elsewhere
      if (cards.has(card.video.id) && error.status !== 401) look(card, 1000 * (error.retryS ?? 5));
      tell(error);
    }
  }, afterMs);
}

async function fetchUrl(card, variant) {
  const answer = await call(`videos/${card.video.id}/content?variant=${variant}`);
  return URL.createObjectURL(await answer.blob());
}

async function still(card) {
  const image = new Image();
  image.alt = ""; // the prompt is beside it
  image.src = await fetchUrl(card, "thumbnail");
  await image.decode().finally(() => URL.revokeObjectURL(image.src));
  if (!card.url) card.part(".screen").replaceChildren(image);
}

async function play(card) {
  if (card.url) return;
  card.url = "wanted";
  try {
    card.url = await fetchUrl(card, "video");
  } catch (error) {
    card.url = null;
    throw error;
  }
  const video = document.createElement("video");
  Object.assign(video, { src: card.url, controls: true, loop: true, playsInline: true, ariaLabel: card.video.prompt.slice(0, 80) });
  Object.assign(card.part(".save"), { href: card.url, download: `${card.video.id}.mp4`, hidden: false });
  card.part(".screen").replaceChildren(video);
  card.item.classList.add("playing");
  card.part(".play").hidden = true;
  video.focus();
  await video.play().catch(() => {}); // a browser that won't start by itself has the controls
}

async function remove(card) {
  await call(`videos/${card.video.id}`, { method: "DELETE" }).catch((error) => {
    if (error.status !== 404) throw error;
  });
  const next = (card.item.nextElementSibling ?? card.item.previousElementSibling)?.querySelector(".delete");
  drop(card.video.id);
  (next ?? find("videos-title")).focus();
  say("The video is deleted.");
}

function drop(id) {
  const card = cards.get(id);
  if (!card) return;
  clearTimeout(card.timer);
  if (card.url) URL.revokeObjectURL(card.url);
  card.item.remove();
  cards.delete(id);
  count();
}

// ---- start
/** Open the desk; where neither it nor the form for the key can be shown, try again. */
async function start() {
  try {
    await open();
  } catch (error) {
    tell(error);
    if (find("desk").hidden && find("enter").hidden) setTimeout(start, 1000 * error.retryS);
  }
}

find("enter").addEventListener("submit", act(() => {
  key = find("key").value.trim();
  return open();
}));
find("ask").addEventListener("submit", act(ask));
find("ask").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) find("ask").requestSubmit();
});
find("leave").addEventListener("click", () => {
  say("The key is forgotten.");
  askForKey();
});
setInterval(() => refresh().catch(tell), REFRESH_MS);
if (asksKey && !key) askForKey();
else start();
