"""What people call a scene: plain captions, paraphrases, advertising words, Korean.

The tokenizer lowers capitals, so upper case costs nothing; a share of the captions has it all
the same. A caption that leaves the motion out means "still".
"""

from __future__ import annotations

import numpy as np

from pipeline.tiny.scenes import Scene

SHAPE_WORDS: dict[str, tuple[str, ...]] = {
    "circle": ("circle", "ball", "disc", "round dot"),
    "square": ("square", "block", "tile"),
    "triangle": ("triangle", "pyramid"),
    "star": ("star", "five-pointed star"),
    "heart": ("heart", "love heart"),
    "ring": ("ring", "donut", "hoop"),
    "bottle": ("bottle", "drink bottle", "bottle of juice", "perfume bottle"),
    "cup": ("cup", "mug", "coffee cup"),
    "can": ("can", "tin", "soda can", "drink can"),
    "shoe": ("shoe", "boot", "sneaker"),
    "box": ("box", "gift box", "package", "parcel"),
}
COLOUR_WORDS: dict[str, tuple[str, ...]] = {
    "red": ("red", "bright red", "crimson"),
    "orange": ("orange", "tangerine"),
    "yellow": ("yellow", "golden yellow", "lemon yellow"),
    "green": ("green", "emerald green"),
    "teal": ("teal", "turquoise", "cyan"),
    "blue": ("blue", "bright blue", "royal blue"),
    "navy": ("navy", "dark blue", "navy blue"),
    "purple": ("purple", "violet"),
    "pink": ("pink", "rose pink"),
    "brown": ("brown", "chocolate brown"),
    "white": ("white", "pure white"),
    "gray": ("gray", "grey"),
    "black": ("black", "jet black"),
}
MOTION_WORDS: dict[str, tuple[str, ...]] = {
    "left": ("moving left", "sliding to the left", "going left", "drifting leftward"),
    "right": ("moving right", "sliding to the right", "going right", "drifting rightward"),
    "up": ("moving up", "rising", "going upward", "floating up"),
    "down": ("moving down", "falling", "going downward", "sinking down"),
    "still": ("standing still", "not moving", "staying still", "motionless"),
    "growing": ("growing", "getting bigger", "zooming in", "becoming larger"),
    "spinning": ("spinning", "rotating", "turning around", "twirling"),
}
KOREAN_SHAPES: dict[str, str] = {
    "circle": "원", "square": "사각형", "triangle": "삼각형", "star": "별", "heart": "하트",
    "ring": "고리", "bottle": "병", "cup": "컵", "can": "캔", "shoe": "신발", "box": "상자",
}  # fmt: skip
KOREAN_COLOURS: dict[str, tuple[str, ...]] = {
    "red": ("빨간", "빨간색"), "orange": ("주황", "주황색"), "yellow": ("노란", "노란색"),
    "green": ("초록", "초록색"), "teal": ("청록", "청록색"), "blue": ("파란", "파란색"),
    "navy": ("남색", "진한 파란색"), "purple": ("보라", "보라색"), "pink": ("분홍", "분홍색"),
    "brown": ("갈색", "밤색"), "white": ("하얀", "흰색"), "gray": ("회색",),
    "black": ("검은", "검은색"),
}  # fmt: skip
KOREAN_MOTIONS: dict[str, tuple[str, ...]] = {
    "left": ("왼쪽으로 움직이는", "왼쪽으로 가는"),
    "right": ("오른쪽으로 움직이는", "오른쪽으로 가는"),
    "up": ("위로 움직이는", "위로 올라가는"),
    "down": ("아래로 움직이는", "아래로 내려가는"),
    "still": ("가만히 있는", "멈춰 있는"),
    "growing": ("커지는", "점점 커지는"),
    "spinning": ("회전하는", "빙글빙글 도는"),
}
BEFORE = (
    "an ad with", "a commercial for", "studio shot of", "product video of", "a clip of",
    "advertisement:", "new!", "cinematic shot of", "a video of", "close-up of",
)  # fmt: skip
ADJECTIVES = ("elegant", "new", "shiny", "premium", "fresh", "simple", "beautiful", "modern")
AFTER = (
    "high quality", "4k", "studio lighting", "minimal style", "clean look", "summer sale",
    "for social media", "smooth animation", "best price", "brand new",
)  # fmt: skip


def plain(scene: Scene) -> str:
    """The caption in its simplest words: "a green bottle moving left on a yellow background"."""
    words = f"{scene.colour} {scene.shape} {MOTION_WORDS[scene.motion][0]}"
    words = words.replace("navy", "dark blue")
    ground = f"{scene.background} {'gradient ' if scene.backdrop == 'gradient' else ''}background"
    return f"{_a(words)} on {_a(ground.replace('navy', 'dark blue'))}"


def paraphrase(rng: np.random.Generator, scene: Scene) -> str:
    """The same scene in other words, order, language or case."""
    kind = rng.random()
    if kind < 0.12:
        return _korean(rng, scene)
    if kind < 0.2:
        return _mixed(rng, scene)
    text = _english(rng, scene)
    case = rng.random()
    if case < 0.1:
        return text.upper()
    if case < 0.25:
        return text.capitalize()
    return text


def _a(words: str) -> str:
    return f"an {words}" if words[0] in "aeiou" else f"a {words}"


def _pick(rng: np.random.Generator, words: tuple[str, ...]) -> str:
    """One of several words, the first of them twice as often as its share."""
    return words[0] if rng.random() < 0.35 else str(rng.choice(words))


def _english(rng: np.random.Generator, scene: Scene) -> str:
    thing = f"{_pick(rng, COLOUR_WORDS[scene.colour])} {_pick(rng, SHAPE_WORDS[scene.shape])}"
    if rng.random() < 0.2:
        thing = f"{rng.choice(ADJECTIVES)} {thing}"
    motion = _pick(rng, MOTION_WORDS[scene.motion])
    ground = _pick(rng, COLOUR_WORDS[scene.background])
    back = f"{ground} gradient background" if scene.backdrop == "gradient" else _plain(rng, ground)
    leave_out = scene.motion == "still" and rng.random() < 0.25
    order = int(rng.integers(0, 6))
    if leave_out:
        text = f"{_a(thing)} on {_a(back)}"
    elif order <= 1:
        text = f"{_a(thing)} {motion} on {_a(back)}"
    elif order == 2:
        text = f"{_a(thing)} on {_a(back)}, {motion}"
    elif order == 3:
        text = f"on {_a(back)}, {_a(thing)} is {motion}"
    elif order == 4:
        text = f"{back}, {thing}, {motion}"
    else:
        text = f"{_a(thing)} {motion} in front of {_a(back)}"
    if rng.random() < 0.25:
        text = f"{rng.choice(BEFORE)} {text}"
    if rng.random() < 0.25:
        text = f"{text}, {rng.choice(AFTER)}"
    return text + ("." if rng.random() < 0.15 else "")


def _plain(rng: np.random.Generator, ground: str) -> str:
    kinds = ("{} background", "{} background", "plain {} background", "{} backdrop")
    return str(rng.choice(kinds)).format(ground)


def _korean(rng: np.random.Generator, scene: Scene) -> str:
    """A Korean caption: ground first, then motion, colour and shape."""
    ground = _pick(rng, KOREAN_COLOURS[scene.background])
    back = f"{ground} {'그라데이션 ' if scene.backdrop == 'gradient' else ''}배경"
    colour = _pick(rng, KOREAN_COLOURS[scene.colour])
    motion = _pick(rng, KOREAN_MOTIONS[scene.motion])
    shape = KOREAN_SHAPES[scene.shape]
    order = int(rng.integers(0, 3))
    if order == 0:
        return f"{back}에서 {motion} {colour} {shape}"
    if order == 1:
        return f"{colour} {shape}, {motion}, {back}"
    return f"{back} 위의 {motion} {colour} {shape} 광고"


def _mixed(rng: np.random.Generator, scene: Scene) -> str:
    """English with the colours and the shape in Korean."""
    colour = _pick(rng, KOREAN_COLOURS[scene.colour])
    ground = _pick(rng, KOREAN_COLOURS[scene.background])
    gradient = "gradient " if scene.backdrop == "gradient" else ""
    motion = _pick(rng, MOTION_WORDS[scene.motion])
    return f"a {colour} {KOREAN_SHAPES[scene.shape]} {motion} on a {ground} {gradient}background"
