"""Draws the icon of the extension and of its module: a mask clicked in one slice is carried through the others.

Run ``python Resources/Icons/draw_icon.py`` from the repository's root after a change; Pillow is all it needs.
"""

from __future__ import annotations

from pathlib import Path

from PIL import Image, ImageDraw, ImageFilter

SIZE = 128
SCALE = 8  # drawn larger and reduced, which smooths the edges
TARGETS = ("Resources/Icons/SAM2Assist.png", "SAM2Assist/Resources/Icons/SAM2Assist.png")

SKY, SEA = (20, 46, 78), (16, 104, 128)
BODY, BODY_EDGE = (176, 190, 204), (232, 238, 244)
SPINE = (250, 250, 246)
ORGAN, ORGAN_EDGE = (255, 138, 76), (255, 196, 150)
CLICK = (255, 255, 255)


def box(x: float, y: float, half_width: float, half_height: float) -> tuple[float, float, float, float]:
    """Return the corners of an ellipse, enlarged, from its centre and half axes in icon pixels."""
    left, top, right, bottom = x - half_width, y - half_height, x + half_width, y + half_height
    return SCALE * left, SCALE * top, SCALE * right, SCALE * bottom


def background() -> Image.Image:
    """Return a rounded square with a vertical gradient."""
    side = SIZE * SCALE
    gradient = Image.linear_gradient("L").resize((side, side))
    colours = Image.composite(Image.new("RGB", gradient.size, SEA), Image.new("RGB", gradient.size, SKY), gradient)
    shape = Image.new("L", gradient.size, 0)
    ImageDraw.Draw(shape).rounded_rectangle((0, 0, side - 1, side - 1), radius=26 * SCALE, fill=255)
    image = Image.new("RGBA", gradient.size)
    image.paste(colours, mask=shape)
    return image


def slice_layer(y: float, organ: float, strength: int) -> Image.Image:
    """Return one body slice seen from the side, with its part of the organ; ``strength`` is its opacity, 0 to 255."""
    layer = Image.new("RGBA", (SIZE * SCALE, SIZE * SCALE))
    draw = ImageDraw.Draw(layer)
    draw.ellipse(box(64, y, 49, 19), fill=(*BODY, strength), outline=(*BODY_EDGE, strength), width=2 * SCALE)
    draw.ellipse(box(64, y + 11.5, 6, 3.6), fill=(*SPINE, strength))
    draw.ellipse(box(47, y - 2, organ, organ * 0.46), fill=ORGAN, outline=ORGAN_EDGE, width=2 * SCALE)
    draw.ellipse(box(92, y - 2, 9, 4.4), fill=(*SPINE, strength // 3))
    return layer


def shadow_of(layer: Image.Image) -> Image.Image:
    """Return a soft shadow a little below the layer, which keeps the slices apart."""
    shade = Image.new("RGBA", layer.size)
    alpha = layer.getchannel("A").point(lambda value: value * 0.45).filter(ImageFilter.GaussianBlur(2.5 * SCALE))
    shade.paste((4, 16, 32, 255), (0, 4 * SCALE), mask=alpha)
    return shade


def click(image: Image.Image, x: float, y: float) -> None:
    """Draw the click that says what is meant: a disc with a plus."""
    draw = ImageDraw.Draw(image)
    draw.ellipse(box(x, y, 7.5, 7.5), fill=CLICK)
    for half_width, half_height in ((4.4, 1.3), (1.3, 4.4)):
        draw.rectangle(box(x, y, half_width, half_height), fill=SEA)


def draw_icon() -> Image.Image:
    """Return the icon with 128 x 128 pixels."""
    image = background()
    for y, organ, strength in ((96, 14, 120), (65, 20, 170), (34, 21, 235)):
        layer = slice_layer(y, organ, strength)
        image.alpha_composite(Image.composite(shadow_of(layer), Image.new("RGBA", image.size), image.getchannel("A")))
        image.alpha_composite(layer)
    click(image, 46, 32)
    return image.resize((SIZE, SIZE), Image.Resampling.LANCZOS)


if __name__ == "__main__":
    root = Path(__file__).resolve().parents[2]
    icon = draw_icon()
    for target in TARGETS:
        icon.save(root / target, optimize=True)
