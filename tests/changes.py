"""Changes of single pictures that make up a fault: retouching, resampling, and the traces of earlier JPEGs."""

from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

QUALITY = 95  # of drawn faces, and of all files that are saved again unless the quality is the fault


def open_image(file: Path | BytesIO) -> Image.Image:
    """Decode a picture as RGB."""
    with Image.open(file) as image:
        return image.convert("RGB")


def save_jpeg(image: Image.Image, file: Path | BytesIO, quality: int) -> None:
    """Save a picture as JPEG without subsampling."""
    image.save(file, "JPEG", quality=quality, subsampling=0)


def tint(image: Image.Image, levels: float) -> Image.Image:
    """Make red brighter and blue darker."""
    pixels = np.asarray(image) + np.array([levels, 0, -levels])
    return Image.fromarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8))


def reencode(image: Image.Image, quality: float) -> Image.Image:
    """Leave the traces of a JPEG quality in the pixels."""
    encoded = BytesIO()
    save_jpeg(image, encoded, round(quality))
    return open_image(encoded)


def enlarge(image: Image.Image, factor: float) -> Image.Image:
    """Enlarge the middle to the size of the picture."""
    margin_px = image.width * (1 - 1 / factor) / 2
    box = (margin_px, margin_px, image.width - margin_px, image.height - margin_px)
    return image.resize(image.size, Image.Resampling.BICUBIC, box=box)


def watermark(image: Image.Image, opacity: float) -> Image.Image:
    """Overlay the lower right corner with a white square of a sixteenth of the edge."""
    edge_px = image.width // 16
    veil = Image.new("L", (edge_px, edge_px), round(255 * opacity))
    marked = image.copy()
    marked.paste(Image.new("RGB", veil.size, "white"), (image.width - edge_px - 1, image.height - edge_px - 1), veil)
    return marked


def blur(image: Image.Image, sigma_px: float) -> Image.Image:
    """Blur with a Gaussian."""
    return image.filter(ImageFilter.GaussianBlur(sigma_px))


def sharpen(image: Image.Image, percent: float) -> Image.Image:
    """Sharpen by an unsharp mask with a radius of 2 pixels."""
    return image.filter(ImageFilter.UnsharpMask(2, round(percent), 0))


def upsample(image: Image.Image, factor: float) -> Image.Image:
    """Scale down by a factor and back up."""
    small = image.resize((round(image.width / factor), round(image.height / factor)), Image.Resampling.BICUBIC)
    return small.resize(image.size, Image.Resampling.BICUBIC)


def curve(image: Image.Image, gamma: float) -> Image.Image:
    """Change the brightness by a gamma."""
    return image.point([round(255 * (level / 255) ** gamma) for level in range(256)] * 3)


def rotate(image: Image.Image, degrees: float) -> Image.Image:
    """Rotate and fill the corners with the reflected picture."""
    margin = image.width // 8
    padded = np.pad(np.asarray(image), ((margin, margin), (margin, margin), (0, 0)), mode="reflect")
    turned = Image.fromarray(padded).rotate(degrees, Image.Resampling.BICUBIC)
    return turned.crop((margin, margin, margin + image.width, margin + image.height))


def launder_chroma(image: Image.Image) -> Image.Image:
    """Leave the traces of 4:2:0 in the pixels."""
    encoded = BytesIO()
    image.save(encoded, "JPEG", quality=QUALITY, subsampling=2)
    return open_image(encoded)


def add_noise(image: Image.Image, sigma: float) -> Image.Image:
    """Add Gaussian noise that depends only on the content."""
    pixels = np.asarray(image)
    noise = np.random.default_rng(int(pixels.sum())).normal(0, sigma, pixels.shape)
    return Image.fromarray(np.clip(np.rint(pixels + noise), 0, 255).astype(np.uint8))


def frame(image: Image.Image, width_px: float) -> Image.Image:
    """Replace the outermost pixels by a black border."""
    inner = ImageOps.crop(image, round(width_px))
    return ImageOps.expand(inner, round(width_px), fill="black")


def shrink(image: Image.Image) -> Image.Image:
    """Scale to three quarters of the size."""
    return image.resize((image.width * 3 // 4, image.height * 3 // 4), Image.Resampling.BICUBIC)


def brighten(image: Image.Image) -> Image.Image:
    """Increase the brightness by a tenth."""
    return ImageEnhance.Brightness(image).enhance(1.1)
