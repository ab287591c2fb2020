"use strict";
(() => {
  const BATCH = 60;
  const VALUES_SHOWN = 8;
  const VALUES_MOST = 200;
  const STATUSES = ["committed", "failed", "rejected", "remaining"];
  const NO_VALUE = "null";

  // ---- the data: columns, read by row number
  const data = JSON.parse(document.getElementById("data").textContent);
  const reader = (c) => ("same" in c ? () => c.same : (i) => c.values[i]);
  const fields = new Map(data.fields.map((c) => [c.name, reader(c)]));
  const labels = data.labels.map((c) => ({ name: c.name, at: reader(c), omitted: new Set(c.omitted) }));
  const at = (name, i) => (fields.has(name) ? fields.get(name)(i) : null);
  const rows = Array.from({ length: data.num_rows }, (_, i) => i);
  const collator = new Intl.Collator(undefined, { numeric: true, sensitivity: "base" });
  const number = new Intl.NumberFormat();

  // ---- words
  const text = (v) =>
    v === null ? "none" : typeof v === "object" ? JSON.stringify(v) : String(v);
  const labelText = (v) =>
    Array.isArray(v) && v.every((x) => typeof x !== "object") ? v.join(", ") : text(v);
  const clipCount = (n) => `${number.format(n)} ${n === 1 ? "clip" : "clips"}`;
  const capital = (s) => s.charAt(0).toUpperCase() + s.slice(1);
  const decimal = (v, digits) => Number(v).toLocaleString(undefined, { maximumFractionDigits: digits });
  function seconds(v) {
    if (v === null) return "";
    if (v < 60) return `${decimal(v, v < 10 ? 2 : 1)} s`;
    const total = Math.round(v), hours = Math.floor(total / 3600), minutes = Math.floor(total / 60) % 60;
    const two = (n) => String(n).padStart(2, "0");
    return hours ? `${hours}:${two(minutes)}:${two(total % 60)} h` : `${minutes}:${two(total % 60)} min`;
  }
  function bytes(v) {
    if (v === null) return "";
    for (const [unit, size] of [["GB", 1e9], ["MB", 1e6], ["kB", 1e3]]) {
      if (v >= size) return `${decimal(v / size, v / size < 10 ? 1 : 0)} ${unit}`;
    }
    return `${v} B`;
  }
  const shape = (i) => (at("width", i) && at("height", i) ? `${at("width", i)}×${at("height", i)}` : "");
  const name = (i) => text(at("id", i) ?? at("clip_id", i) ?? `row ${i + 1}`);

  // ---- elements
  const find = (id) => document.getElementById(id);
  function make(tag, attributes = {}, ...children) {
    const element = document.createElement(tag);
    for (const [key, value] of Object.entries(attributes)) {
      if (value === true) element.setAttribute(key, "");
      else if (value !== false && value !== null && value !== undefined) element.setAttribute(key, value);
    }
    element.append(...children.filter((c) => c !== null && c !== undefined));
    return element;
  }
  function icon(id) {
    const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    const use = document.createElementNS("http://www.w3.org/2000/svg", "use");
    svg.setAttribute("class", "icon");
    svg.setAttribute("aria-hidden", "true");
    use.setAttribute("href", `#i-${id}`);
    svg.append(use);
    return svg;
  }
  const grid = find("clips"), more = find("more"), viewer = find("viewer"), stage = find("stage");

  // ---- facets: status, then labels
  const keysOf = (v) =>
    Array.isArray(v) && v.length && v.every((x) => x === null || typeof x !== "object")
      ? [...new Set(v.map((x) => JSON.stringify(x)))]
      : [JSON.stringify(v)];
  function facet(title, read, omitted = new Set()) {
    const keys = rows.map((i) => (omitted.has(i) ? [] : keysOf(read(i))));
    const all = new Map();
    for (const list of keys) for (const key of list) all.set(key, (all.get(key) ?? 0) + 1);
    const values = [...all.keys()].sort((a, b) =>
      (a === NO_VALUE) - (b === NO_VALUE) || all.get(b) - all.get(a) || collator.compare(a, b));
    return { title, keys, values, chosen: new Set(), counts: new Map(), open: values.length <= 40, whole: false, query: "" };
  }
  const status = facet("Status", (i) => at("status", i));
  const extra = [];
  const sizes = facet("Size", (i) => shape(i) || null);
  if (sizes.values.length > 1) extra.push(sizes);
  const byLabel = [...labels.map((label) => facet(label.name, label.at, label.omitted)), ...extra];
  const facets = [status, ...byLabel];
  const keyText = (key) => (key === NO_VALUE ? "No value" : text(JSON.parse(key)));

  let terms = [], view = [], shown = 0;
  const haystacks = [];
  const haystack = (i) =>
    (haystacks[i] ??= ["id", "clip_id", "prompt", "negative_prompt", "error"].map((f) => at(f, i) ?? "")
      .concat(labels.map((l) => (l.at(i) === null ? "" : text(l.at(i))))).join("\n").toLowerCase());

  const sorts = [
    ["Table order", null],
    ["ID", (i) => name(i)],
    ["Longest", (i) => at("duration_s", i), -1],
    ["Largest file", (i) => at("size_bytes", i), -1],
    ["Most device time", (i) => at("device_seconds", i), -1],
    ["Status", (i) => at("status", i)],
  ];
  const numFixedSorts = sorts.length;
  for (const label of labels) sorts.push([label.name, label.at]);
  function order(list) {
    const [, read, sign = 1] = sorts[Number(find("sort").value)];
    if (!read) return list;
    const compare = (a, b) => {
      const x = read(a), y = read(b);
      if (x === null || y === null) return (x === null) - (y === null) || a - b;
      const by = typeof x === "number" && typeof y === "number" ? x - y : collator.compare(text(x), text(y));
      return sign * by || a - b;
    };
    return list.slice().sort(compare);
  }

  // One pass: a row counts in a facet when every other filter lets it through.
  function select() {
    for (const f of facets) f.counts.clear();
    const list = [];
    for (const i of rows) {
      if (!terms.every((term) => haystack(i).includes(term))) continue;
      let barred = null, number = 0;
      for (const f of facets) {
        if (f.chosen.size && !f.keys[i].some((key) => f.chosen.has(key))) { barred = f; number += 1; }
      }
      if (number === 0) list.push(i);
      for (const f of number === 0 ? facets : number === 1 ? [barred] : []) {
        for (const key of f.keys[i]) f.counts.set(key, (f.counts.get(key) ?? 0) + 1);
      }
    }
    view = order(list);
  }

  function update() {
    select();
    drawStatuses();
    drawFacets();
    drawChips();
    stopPreview();
    grid.replaceChildren();
    shown = 0;
    const all = view.length === rows.length;
    find("count").textContent = all ? clipCount(rows.length) : `${number.format(view.length)} of ${clipCount(rows.length)}`;
    find("empty").hidden = view.length > 0 || rows.length === 0;
    const top = grid.getBoundingClientRect().top + scrollY - 140;
    if (scrollY > top) scrollTo({ top: Math.max(0, top) });
    addCards();
  }

  function toggle(f, key, on) {
    if (on) f.chosen.add(key); else f.chosen.delete(key);
    update();
  }
  function clearAll() {
    for (const f of facets) f.chosen.clear();
    find("search").value = "";
    terms = [];
    update();
  }

  // ---- controls
  function drawStatuses() {
    const tabs = find("statuses");
    const focused = tabs.contains(document.activeElement) ? document.activeElement.dataset.key : null;
    const tab = (key, title, count, pressed, tone) => {
      const button = make("button", { type: "button", class: `tab ${tone}`, "aria-pressed": String(pressed), "data-key": key },
        tone ? make("span", { class: "dot" }) : null, title, make("b", {}, number.format(count)));
      button.addEventListener("click", () => {
        status.chosen.clear();
        if (key) status.chosen.add(key);
        update();
      });
      return button;
    };
    const total = [...status.counts.values()].reduce((a, b) => a + b, 0);
    const known = STATUSES.map((s) => JSON.stringify(s));
    const keys = [...known.filter((k) => status.values.includes(k)), ...status.values.filter((k) => !known.includes(k))];
    tabs.replaceChildren(tab("", "All", total, status.chosen.size === 0, ""), ...keys.map((key) => {
      const word = keyText(key);
      return tab(key, capital(word), status.counts.get(key) ?? 0, status.chosen.has(key), STATUSES.includes(word) ? word : "remaining");
    }));
    if (focused !== null) [...tabs.children].find((t) => t.dataset.key === focused)?.focus();
  }

  function drawFacets() {
    for (const f of byLabel) {
      if (!f.body) continue;
      const query = f.query.toLowerCase();
      const matching = f.values.filter((key) => f.chosen.has(key) || keyText(key).toLowerCase().includes(query));
      const most = query || f.whole ? VALUES_MOST : VALUES_SHOWN;
      const focused = f.body.contains(document.activeElement) ? document.activeElement.dataset.key : null;
      f.body.replaceChildren(...matching.slice(0, most).map((key) => {
        const count = f.counts.get(key) ?? 0;
        const box = make("input", { type: "checkbox", "data-key": key });
        box.checked = f.chosen.has(key);
        box.addEventListener("change", () => toggle(f, key, box.checked));
        return make("label", { class: count ? "value" : "value none", title: keyText(key) }, box,
          make("span", {}, keyText(key)), make("small", {}, number.format(count)));
      }));
      const left = matching.length - most;
      if (left > 0 && !f.whole && !query) {
        const button = make("button", { type: "button", class: "link" }, `Show ${number.format(Math.min(left, VALUES_MOST - VALUES_SHOWN))} more`);
        button.addEventListener("click", () => { f.whole = true; drawFacets(); f.body.children[VALUES_SHOWN]?.querySelector("input").focus(); });
        f.body.append(button);
      }
      if (focused) [...f.body.querySelectorAll("input")].find((b) => b.dataset.key === focused)?.focus();
    }
  }

  function drawChips() {
    const chips = [];
    for (const f of byLabel) {
      for (const key of f.chosen) {
        const chip = make("button", { type: "button", class: "chip", "aria-label": `Remove filter ${f.title}: ${keyText(key)}` },
          make("span", {}, `${f.title}: ${keyText(key)}`), icon("close"));
        chip.addEventListener("click", () => { toggle(f, key, false); (find("chips").firstElementChild ?? find("search")).focus(); });
        chips.push(chip);
      }
    }
    find("chips").replaceChildren(...chips);
    find("chips").hidden = !chips.length;
    find("clear").hidden = !chips.length;
    find("filters-count").textContent = String(chips.length);
    find("filters-count").hidden = !chips.length;
  }

  function buildControls() {
    const useful = byLabel.filter((f) => f.values.length > 1);
    for (const f of useful) {
      f.body = make("div", {});
      const body = make("fieldset", { class: "facet-body" }, make("legend", { class: "unseen" }, f.title));
      if (f.values.length > VALUES_SHOWN) {
        const input = make("input", { type: "search", class: "facet-find", placeholder: `Find in ${number.format(f.values.length)} values`, "aria-label": `Find values of ${f.title}` });
        input.addEventListener("input", () => { f.query = input.value; drawFacets(); });
        body.append(input);
      }
      body.append(f.body);
      find("facets").append(make("details", { class: "facet", open: f.open }, make("summary", {}, f.title), body));
    }
    if (!useful.length) for (const e of document.querySelectorAll(".body, .top")) e.classList.add("plain");

    const options = sorts.map(([title], k) => make("option", { value: String(k) }, title));
    find("sort").append(...options.slice(0, numFixedSorts));
    if (labels.length) find("sort").append(make("optgroup", { label: "Labels" }, ...options.slice(numFixedSorts)));
    find("sort").addEventListener("change", update);
    find("clear").addEventListener("click", () => { clearAll(); find("search").focus(); });
    find("empty-clear").addEventListener("click", () => { clearAll(); find("search").focus(); });
    find("size").addEventListener("input", () => grid.style.setProperty("--card", `${find("size").value}px`));
    let waiting = 0;
    find("search").addEventListener("input", () => {
      clearTimeout(waiting);
      waiting = setTimeout(() => {
        terms = find("search").value.toLowerCase().split(/\s+/).filter(Boolean);
        update();
      }, 120);
    });

    const aside = find("filters"), opener = find("filters-open");
    const show = (on) => {
      aside.classList.toggle("shown", on);
      document.body.classList.toggle("filters-shown", on);
      opener.setAttribute("aria-expanded", String(on));
      (on ? find("filters-close") : opener).focus();
    };
    opener.addEventListener("click", () => show(true));
    find("filters-close").addEventListener("click", () => show(false));
    aside.addEventListener("keydown", (e) => { if (e.key === "Escape" && aside.classList.contains("shown")) show(false); });
    matchMedia("(min-width: 901px)").addEventListener("change", () => {
      aside.classList.remove("shown");
      document.body.classList.remove("filters-shown");
      opener.setAttribute("aria-expanded", "false");
    });
    const head = document.querySelector(".top");
    new ResizeObserver(() => document.documentElement.style.setProperty("--top", `${head.offsetHeight}px`)).observe(head);
  }

  function drawSummary() {
    const sum = (field) => rows.reduce((total, i) => total + (at("status", i) === "committed" ? at(field, i) ?? 0 : 0), 0);
    const done = rows.filter((i) => at("status", i) === "committed").length;
    const models = new Set(rows.map((i) => at("model", i)).filter(Boolean));
    find("summary").textContent = [
      done === rows.length ? clipCount(done) : `${number.format(done)} of ${clipCount(rows.length)} rendered`,
      sum("duration_s") ? `${seconds(sum("duration_s"))} of video` : "",
      bytes(sum("size_bytes") || null),
      models.size === 1 ? String([...models][0]) : models.size ? `${models.size} models` : "",
    ].filter(Boolean).join("  ·  ");
    find("summary").title = find("summary").textContent;

    const groups = new Map();
    const counts = { failed: 0, rejected: 0 };
    for (const i of rows) {
      const word = at("status", i);
      if (!(word in counts)) continue;
      counts[word] += 1;
      const key = `${word}\n${at("error", i) ?? ""}`;
      if (!groups.has(key)) groups.set(key, []);
      groups.get(key).push(i);
    }
    if (!groups.size) return;
    const total = counts.failed + counts.rejected;
    const parts = Object.entries(counts).filter(([, n]) => n).map(([word, n]) => `${number.format(n)} ${word}`);
    const panel = find("attention");
    panel.hidden = false;
    panel.querySelector("summary").textContent = `${number.format(total)} ${total === 1 ? "row needs" : "rows need"} attention: ${parts.join(", ")}`;
    const sorted = [...groups.values()].sort((a, b) => b.length - a.length).slice(0, 100);
    panel.querySelector("ol").append(...sorted.map((list) => {
      const ids = list.slice(0, 6).map((i) => {
        const button = make("button", { type: "button", class: "link" }, name(i));
        button.addEventListener("click", () => openViewer(i, button));
        return button;
      });
      if (list.length > 6) ids.push(make("span", {}, `and ${number.format(list.length - 6)} more`));
      return make("li", {}, badge(list[0]), make("p", {}, at("error", list[0]) ?? "No reason was recorded."), make("div", { class: "ids" }, ...ids));
    }));
  }
  function badge(i) {
    const word = text(at("status", i)), tone = STATUSES.includes(word) ? word : "remaining";
    return make("span", { class: `badge ${tone}` }, tone === "committed" ? make("span", { class: "dot" }) : icon(tone), capital(word));
  }

  // ---- cards
  function why(i) {
    const word = text(at("status", i));
    const reason = at("error", i) ?? (word === "remaining" ? "Not rendered yet." : word === "committed" ? "No video in the manifest." : "No reason was recorded.");
    return make("span", { class: `why ${STATUSES.includes(word) ? word : "remaining"}` }, badge(i), make("span", {}, reason));
  }
  function card(i, place) {
    const frame = make("span", { class: "frame" });
    const video = at("video", i), poster = at("poster", i), prompt = at("prompt", i) ?? "";
    if (video && poster) {
      const image = make("img", { loading: "lazy", decoding: "async", alt: "", width: at("width", i), height: at("height", i), src: poster });
      image.addEventListener("error", () => image.remove());
      frame.append(image);
    } else if (!video) frame.append(why(i));
    if (video && at("duration_s", i) !== null) frame.append(make("span", { class: "tag" }, seconds(at("duration_s", i))));
    const said = `${name(i)}, ${text(at("status", i))}. ${prompt.length > 160 ? `${prompt.slice(0, 160)}…` : prompt}`;
    const open = make("button", { type: "button", class: "open", "aria-label": said, "aria-haspopup": "dialog" }, frame);
    open.addEventListener("click", () => openViewer(i, open));
    const tags = labels.filter((l) => l.at(i) !== null).map((l) => make("li", { title: `${l.name}: ${labelText(l.at(i))}` }, labelText(l.at(i))));
    const element = make("li", { class: "card", "data-row": i, "aria-posinset": place + 1, "aria-setsize": view.length }, open,
      make("div", { class: "words" },
        make("p", { class: "prompt", title: prompt }, prompt || "No prompt"),
        tags.length ? make("ul", { class: "labels", "aria-label": "Labels" }, ...tags) : null,
        make("p", { class: "meta" }, make("span", {}, name(i)), make("span", {}, shape(i)))));
    if (video) {
      element.addEventListener("pointerenter", (e) => { if (e.pointerType !== "touch") preview(element, i); });
      element.addEventListener("pointerleave", () => stopPreview(element));
      open.addEventListener("focus", () => { if (open.matches(":focus-visible")) preview(element, i); });
      open.addEventListener("blur", () => stopPreview(element));
    }
    return element;
  }
  function addCards(least = BATCH) {
    const part = view.slice(shown, shown + least);
    grid.append(...part.map((i, k) => card(i, shown + k)));
    shown += part.length;
    if (shown < view.length) requestAnimationFrame(fill);
  }
  function fill() {
    if (shown < view.length && more.getBoundingClientRect().top < innerHeight + 1200) addCards();
  }

  // ---- preview: one video on the page, moved to where the pointer or the focus is
  const calm = matchMedia("(prefers-reduced-motion: reduce)");
  let player = null;
  function preview(element, i) {
    if (calm.matches || viewer.open || player?.element === element) return;
    stopPreview();
    const video = make("video", { loop: true, playsinline: true, preload: "auto", "aria-hidden": "true", tabindex: "-1" });
    video.muted = true;
    video.src = at("video", i);
    player = { element, video };
    video.addEventListener("playing", () => element.classList.add("playing"));
    element.querySelector(".frame").append(video);
    video.play().catch(() => {});
  }
  function stopPreview(element) {
    if (!player || (element && player.element !== element)) return;
    unload(player.video);
    player.element.classList.remove("playing");
    player = null;
  }
  function unload(video) {
    video.pause();
    video.removeAttribute("src");
    video.load();
    video.remove();
  }

  // ---- the large view
  let current = null, opener = null;
  function openViewer(i, from) {
    opener = from;
    stopPreview();
    show(i);
    viewer.showModal();
    find("viewer-close").focus();
  }
  function step(by) {
    const place = view.indexOf(current) + by;
    if (view.indexOf(current) >= 0 && place >= 0 && place < view.length) show(view[place]);
  }
  function show(i) {
    current = i;
    const place = view.indexOf(i);
    for (const old of stage.querySelectorAll("video")) unload(old);
    const source = at("video", i);
    if (source) {
      const video = make("video", { controls: true, loop: true, playsinline: true, poster: at("poster", i), "aria-label": `Video ${name(i)}` });
      video.src = source;
      stage.replaceChildren(video);
      video.play().catch(() => { video.muted = true; video.play().catch(() => {}); });
    } else stage.replaceChildren(why(i));
    find("viewer-id").textContent = name(i);
    find("viewer-id").title = name(i);
    find("viewer-place").replaceChildren(badge(i), place < 0 ? "" : `${number.format(place + 1)} of ${number.format(view.length)}`);
    viewer.style.setProperty("--ratio", String(source && at("height", i) ? at("width", i) / at("height", i) : 2));
    find("previous").disabled = place <= 0;
    find("next").disabled = place < 0 || place >= view.length - 1;
    if (document.activeElement === document.body) find("viewer-close").focus();
    find("viewer-body").replaceChildren(...details(i));
    find("viewer-body").scrollTop = 0;
    try { history.replaceState(null, "", `#clip=${encodeURIComponent(name(i))}`); } catch { /* a page without history */ }
  }
  function copyButton(what) {
    if (!navigator.clipboard) return null;
    const button = make("button", { type: "button", class: "link" }, icon("copy"), "Copy");
    button.addEventListener("click", async () => {
      try { await navigator.clipboard.writeText(what); button.lastChild.data = "Copied"; }
      catch { button.lastChild.data = "Can’t copy here"; }
      setTimeout(() => { button.lastChild.data = "Copy"; }, 1600);
    });
    return button;
  }
  function group(title, action, ...children) {
    return make("section", { class: "group" }, make("h3", {}, make("span", {}, title), action), ...children);
  }
  function list(title, action, pairs) {
    const kept = pairs.filter(([, value]) => value !== null && value !== undefined && value !== "");
    if (!kept.length) return null;
    return group(title, action, make("dl", {}, ...kept.flatMap(([term, value, kind]) =>
      [make("dt", {}, term), make("dd", { class: kind }, text(value))])));
  }
  function details(i) {
    const get = (field) => at(field, i);
    const prompt = get("prompt"), negative = get("negative_prompt"), error = get("error");
    const out = get("video") ? make("a", { class: "link", href: get("video"), download: true }, icon("out"), "Download") : null;
    return [
      error ? group("Why", copyButton(error), make("p", { class: "error" }, error)) : null,
      group("Prompt", prompt ? copyButton(prompt) : null, make("p", {}, prompt || "No prompt")),
      negative ? group("Negative prompt", copyButton(negative), make("p", {}, negative)) : null,
      list("Labels", null, labels.map((l) => [l.name, l.at(i) === null ? null : labelText(l.at(i))])),
      list("Clip", out, [
        ["Size", shape(i)], ["Frames", get("num_frames")], ["Frames a second", get("fps")],
        ["Duration", seconds(get("duration_s"))], ["Seed", get("seed"), "code"],
        ["Steps", get("num_inference_steps")], ["Guidance scale", get("guidance_scale")],
        ["File size", bytes(get("size_bytes"))],
      ]),
      list("Time taken", null, [
        ["Encode", seconds(get("encode_s"))], ["Denoise", seconds(get("denoise_s"))],
        ["Develop", seconds(get("develop_s"))], ["Upload", seconds(get("upload_s"))],
        ["Device time", seconds(get("device_seconds"))],
      ]),
      list("Origin", null, [
        ["Model", get("model")], ["Layout", get("layout")], ["Attempt", get("attempt"), "code"], ["Clip id", get("clip_id"), "code"],
        ["Model fingerprint", get("model_fingerprint"), "code"], ["SHA-256", get("sha256"), "code"],
        ["Video", get("uri"), "code"], ["Poster", get("poster_uri"), "code"],
      ]),
    ].filter(Boolean);
  }
  viewer.addEventListener("close", () => {
    for (const video of stage.querySelectorAll("video")) unload(video);
    try { history.replaceState(null, "", location.pathname + location.search); } catch { /* a page without history */ }
    const here = [...grid.children].find((c) => Number(c.dataset.row) === current)?.querySelector(".open");
    (here ?? opener)?.focus();
    current = null;
  });
  viewer.addEventListener("click", (e) => { if (e.target === viewer) viewer.close(); });
  find("viewer-close").addEventListener("click", () => viewer.close());
  find("previous").addEventListener("click", () => step(-1));
  find("next").addEventListener("click", () => step(1));

  // ---- the keyboard
  document.addEventListener("keydown", (e) => {
    if (e.ctrlKey || e.metaKey || e.altKey) return;
    const typing = e.target.matches?.("input, select, textarea");
    if (viewer.open) {
      if (e.target.matches?.("video")) return;
      if (e.key === "ArrowLeft" || e.key === "ArrowRight") { step(e.key === "ArrowLeft" ? -1 : 1); e.preventDefault(); }
      return;
    }
    if (e.key === "/" && !typing) { find("search").focus(); find("search").select(); e.preventDefault(); return; }
    const from = e.target.closest?.(".card");
    if (!from || typing) return;
    const columns = getComputedStyle(grid).gridTemplateColumns.split(" ").length;
    const here = [...grid.children].indexOf(from);
    const to = { ArrowLeft: here - 1, ArrowRight: here + 1, ArrowUp: here - columns, ArrowDown: here + columns, Home: 0, End: shown - 1 }[e.key];
    if (to === undefined) return;
    e.preventDefault();
    if (to >= shown) addCards();
    grid.children[to]?.querySelector(".open").focus();
  });

  // ---- start
  const shapes = new Set(rows.filter((i) => at("video", i) && at("height", i)).map((i) => at("width", i) / at("height", i)));
  const aspect = shapes.size === 1 ? Math.min(1.91, Math.max(0.56, [...shapes][0])) : 1;
  grid.style.setProperty("--aspect", String(aspect));
  buildControls();
  drawSummary();
  update();
  new IntersectionObserver(fill, { rootMargin: "1200px" }).observe(more);
  const asked = /^#clip=(.+)$/.exec(location.hash);
  if (asked) {
    let wanted = null;
    try { wanted = decodeURIComponent(asked[1]); } catch { /* not one of our links */ }
    const i = rows.find((k) => name(k) === wanted);
    if (i !== undefined) openViewer(i, null);
  }
})();
