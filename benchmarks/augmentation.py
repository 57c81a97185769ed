"""SimCLR's augmentation, beside torchvision's, lightly's and kornia's, on one thread.

Crop, flip, jitter with hue, grey, blur, solarise, normalise; two views of each image. torchvision
and lightly begin with PIL images, torchvision's v2, kornia and ours with 8-bit tensors.
"""

import gc
import importlib.util
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import torch
from measure import alternate, parser, save
from PIL import Image
from torch import Tensor
from torchvision import transforms as v1
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tv

from duality_ssl.data import Augmentation, Draws, View
from duality_ssl.data.augment import color, spatial
from duality_ssl.data.augment.pipeline import chunk_size

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
STRENGTHS = {"brightness": 0.8, "contrast": 0.8, "saturation": 0.8, "hue": 0.2}
VIEW = View(**STRENGTHS, jitter=0.8, gray=0.2, blur=0.5, sigma=(0.1, 2.0), solarize=0.2)
KERNEL = 2 * spatial.blur_radius(VIEW.sigma[1], 224) + 1  # of the peers, as of our widest blur
# Side of the views, side of the images, number of images.
SIZES = [(32, 32, 256), (224, 256, 32)]
TINY = [(32, 32, 4), (48, 64, 2)]
TOLERANCE = 1e-4  # of the mean difference from torchvision, for values in [0, 1]


def torchvision_pil(size: int) -> Callable[[Any], Tensor]:
    """Torchvision's first transforms, which most examples use, for PIL images."""
    return v1.Compose(
        [
            v1.RandomResizedCrop(size, VIEW.scale, VIEW.ratio),
            v1.RandomHorizontalFlip(VIEW.flip),
            v1.RandomApply([v1.ColorJitter(**STRENGTHS)], VIEW.jitter),
            v1.RandomGrayscale(VIEW.gray),
            v1.RandomApply([v1.GaussianBlur(KERNEL, VIEW.sigma)], VIEW.blur),
            v1.RandomSolarize(128, VIEW.solarize),
            v1.ToTensor(),
            v1.Normalize(MEAN, STD),
        ]
    )


def torchvision_v2(size: int) -> Callable[[Any], Tensor]:
    """Torchvision's second transforms, for an 8-bit tensor."""
    return v2.Compose(
        [
            v2.RandomResizedCrop(size, VIEW.scale, VIEW.ratio, antialias=True),
            v2.RandomHorizontalFlip(VIEW.flip),
            v2.RandomApply([v2.ColorJitter(**STRENGTHS)], VIEW.jitter),
            v2.RandomGrayscale(VIEW.gray),
            v2.RandomApply([v2.GaussianBlur(KERNEL, VIEW.sigma)], VIEW.blur),
            v2.RandomSolarize(128, VIEW.solarize),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(MEAN, STD),
        ]
    )


def lightly_pil(size: int) -> Callable[[Any], Tensor]:
    """Lightly's one transform with all of the operations, at SimCLR's strengths, for PIL images.

    It blurs as PIL does: by boxes, an approximation.
    """
    from lightly.transforms.byol_transform import BYOLView2Transform

    return BYOLView2Transform(
        input_size=size,
        cj_bright=VIEW.brightness,
        cj_contrast=VIEW.contrast,
        cj_sat=VIEW.saturation,
        cj_hue=VIEW.hue,
        gaussian_blur=VIEW.blur,
        solarization_prob=VIEW.solarize,
    )


def kornia_batch(size: int) -> Callable[[Tensor], Tensor]:
    """Kornia's transforms, for a batch of 8-bit tensors; the order of its jitter is the batch's."""
    from kornia import augmentation as kornia

    chain = kornia.AugmentationSequential(
        kornia.RandomResizedCrop((size, size), VIEW.scale, VIEW.ratio),
        kornia.RandomHorizontalFlip(p=VIEW.flip),
        kornia.ColorJitter(**STRENGTHS, p=VIEW.jitter),
        kornia.RandomGrayscale(p=VIEW.gray),
        kornia.RandomGaussianBlur((KERNEL, KERNEL), VIEW.sigma, p=VIEW.blur),
        kornia.RandomSolarize(0.0, 0.0, p=VIEW.solarize),
        kornia.Normalize(torch.tensor(MEAN), torch.tensor(STD)),
        data_keys=["input"],
        same_on_batch=False,
    )
    return lambda images: chain(images.float().div_(255))


def contenders(images: Tensor, size: int) -> dict[str, Callable[[], list[Tensor]]]:
    """By name: what turns all images into two batches of views."""
    generator = torch.Generator().manual_seed(0)
    ours = Augmentation(VIEW, size, MEAN, STD)
    pil = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]

    def two(make: Callable[[], Tensor]) -> Callable[[], list[Tensor]]:
        return lambda: [make() for _ in range(2)]

    def each(one: Callable[[Any], Tensor], inputs: Iterable[Any]) -> Callable[[], list[Tensor]]:
        return two(lambda: torch.stack([one(image) for image in inputs]))

    found = {
        "ours": two(lambda: ours(images, generator)),
        "pil": each(torchvision_pil(size), pil),
        "v2": each(torchvision_v2(size), images),
    }
    if importlib.util.find_spec("lightly"):
        found["lightly"] = each(lightly_pil(size), pil)
    if importlib.util.find_spec("kornia"):
        batch = kornia_batch(size)
        found["kornia"] = two(lambda: batch(images))
    for name in ("lightly", "kornia"):
        if name not in found:
            print(f"{name} is left out: it is not installed.")
    return found


def chain_of_torchvision(image: Tensor, draws: Draws, i: int, size: int) -> Tensor:
    """One image with the parameters that we drew, by torchvision on floats, in [0, 1]."""
    y = tv.resized_crop(image / 255, *draws.boxes[i].tolist(), [size, size], antialias=True)
    y = tv.horizontal_flip(y) if draws.flip[i] else y
    for step in draws.order[i].tolist():
        name = ("brightness", "contrast", "saturation", "hue")[step]
        y = getattr(tv, f"adjust_{name}")(y, getattr(draws, name)[i].item())
    y = tv.rgb_to_grayscale(y, 3) if draws.gray[i] else y
    sigma = draws.sigma[i].item()
    y = tv.gaussian_blur(y, [KERNEL] * 2, [sigma] * 2) if sigma else y
    return tv.solarize(y, 0.5) if draws.solarize[i] else y


def difference(images: Tensor, size: int) -> float:
    """Mean absolute difference of ours from torchvision's with the same parameters, in [0, 1]."""
    plain = Augmentation(VIEW, size, (0.0,) * 3, (1.0,) * 3)
    draws = VIEW.draw(len(images), torch.Generator().manual_seed(1), tuple(images.shape[2:]))
    theirs = [chain_of_torchvision(image, draws, i, size) for i, image in enumerate(images)]
    return (plain.apply(images, draws) - torch.stack(theirs)).abs().mean().item()


def compare(size: int, images: Tensor, repeats: int) -> dict[str, Any]:
    """Time the whole recipe of all contenders: one row."""
    found = contenders(images, size)
    error = difference(images, size)
    if error > TOLERANCE:
        raise RuntimeError(f"Expected torchvision's values at {size} px, but they are {error} off.")
    times = alternate(found, repeats)
    views = 2 * len(images)
    return {
        "what": f"{size} px from {images.shape[3]} px",
        "images": len(images),
        **{f"{name} views/s": views / seconds for name, seconds in times.items()},
        **{f"times_{name}": times[name] / times["ours"] for name in times if name != "ours"},
        "difference": error,
    }


def operations(size: int, images: Tensor, repeats: int) -> dict[str, Any]:
    """Time our operations one by one, with parameters drawn for the recipe: one row.

    Each runs through the batch in the chunks of the whole, over and over on the same values.
    """
    n, size_of_images = len(images), (images.shape[2], images.shape[3])
    whole = Augmentation(VIEW, size, MEAN, STD)
    generator = torch.Generator().manual_seed(2)
    draws = VIEW.draw(n, generator, size_of_images)
    crop = spatial.Resampling(draws.boxes, size, draws.flip, images.device)
    kernels = spatial.gaussian_kernels(draws.sigma, whole.radius)
    views = crop(images).div_(255)
    own = views.clone()  # normalising again and again drifts
    chunk = chunk_size(views[0].numel())

    def through(run: Callable[..., object], x: Tensor = views) -> Callable[[], None]:
        @torch.inference_mode()
        def all_chunks() -> None:
            for first in range(0, n, chunk):
                rows = slice(first, first + chunk)
                run(x[rows], draws[rows], rows)

        return all_chunks

    def jitter(x: Tensor, d: Draws, hue: bool) -> Tensor:
        one = torch.ones(len(x))
        factors = (one,) * 3 if hue else (d.brightness, d.contrast, d.saturation)
        return color.color_jitter(x, *factors, d.hue if hue else one - 1, d.order)

    steps = {
        "draw": lambda: VIEW.draw(n, generator, size_of_images),
        "crop, flip": through(lambda x, _, rows: crop(x, rows), images),
        "jitter without hue": through(lambda x, d, _: jitter(x, d, hue=False)),
        "hue": through(lambda x, d, _: jitter(x, d, hue=True)),
        "grey": through(lambda x, d, _: color.grayscale(x, d.gray)),
        "blur": through(lambda x, d, rows: spatial.gaussian_blur(x, d.sigma, kernels[rows])),
        "solarise": through(lambda x, d, _: color.solarize(x, d.solarize)),
        "normalise": through(lambda x, d, _: color.normalize(x, MEAN, STD), own),
        "whole": lambda: whole(images, generator),
    }
    times = alternate(steps, repeats)
    micro = {f"{name} µs": 1e6 * seconds / n for name, seconds in times.items()}
    return {"what": f"{size} px from {images.shape[3]} px", **micro}


if __name__ == "__main__":
    options = parser(__doc__)
    args = options.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    warnings.simplefilter("ignore")  # of old names that the peers use
    batches = [
        (size, torch.randint(0, 256, (n, 3, source, source), dtype=torch.uint8))
        for size, source, n in (TINY if args.smoke else SIZES)
    ]
    repeats = 1 if args.smoke else args.repeats
    gc.freeze()  # what is imported, which the harness would walk before each reading of the clock
    save("augmentation", [compare(*batch, repeats) for batch in batches], args.out)
    save("augmentation_operations", [operations(*batch, repeats) for batch in batches], args.out)
    gc.unfreeze()
