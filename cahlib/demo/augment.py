"""Makes training pictures as various as the web's: placed, lit, blurred, compressed, on any ground.

Works on whole batches of floats from 0 to 1, shape (n, channels, side, side).
"""

from __future__ import annotations

import io
import math
from random import Random

import numpy as np
import torch
import torch.nn.functional as F
from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from PIL import Image
from torch import Tensor


def move(drawings: Tensor, mirror: Tensor) -> Tensor:
    """Scale, turn, shift and (where `mirror`) mirror; what comes in from outside is transparent."""
    n = len(drawings)
    size, stretch = _uniform(n, 0.5, 1.05), _uniform(n, 0.88, 1.14)
    angle = torch.randn(n) * math.radians(10)
    reach = (1 - size).clamp(min=0.05)
    across = torch.stack([angle.cos(), angle.sin()], 1) * torch.where(mirror, -1, 1)[:, None]
    down = torch.stack([-angle.sin(), angle.cos()], 1) * stretch[:, None]
    turn = torch.stack([across, down], 1) / size[:, None, None]
    shift = torch.stack([_uniform(n, -1, 1) * reach, _uniform(n, -1, 1) * reach], 1)
    theta = torch.cat([turn, shift[:, :, None]], 2)
    grid = F.affine_grid(theta, list(drawings.shape), align_corners=False)
    return F.grid_sample(drawings, grid, align_corners=False)


def grounds(n: int, side: int) -> Tensor:
    """Backgrounds: plain, gradient, stripes, and noise of every coarseness."""
    colour = torch.rand(n, 3, 1, 1)
    other = torch.rand(n, 3, 1, 1)
    kind = torch.rand(n, 1, 1, 1)
    colour = torch.where(kind < 0.2, 1 - torch.rand(n, 1, 1, 1) * 0.08, colour)
    line = torch.linspace(-1, 1, side)
    angle = _uniform(n, 0, math.tau)[:, None, None, None]
    ramp = line[None, None, None, :] * angle.cos() + line[None, None, :, None] * angle.sin()
    waves = torch.sin(ramp * _uniform(n, 4, 60)[:, None, None, None])
    weight = torch.where(kind < 0.3, 0.0, torch.where(kind < 0.7, ramp, waves) / 2 + 0.5)
    ground = colour + (other - colour) * weight * _uniform(n, 0, 1)[:, None, None, None]
    for cells in (3, 6, 12, 24):
        noise = torch.randn(n, 3, cells, cells) * 0.5 + torch.randn(n, 1, cells, cells)
        noise = F.interpolate(noise, size=side, mode="bilinear", align_corners=False)
        ground = ground + noise * (torch.rand(n, 1, 1, 1) ** 3 * 0.3 * (kind > 0.25))
    return ground.clamp(0, 1)


def spoil(pictures: Tensor, random: Random) -> Tensor:
    """Change the light and the colours a little, blur, add noise, compress some."""
    n = len(pictures)
    grey = pictures.mean(1, keepdim=True)
    pictures = grey + (pictures - grey) * _uniform(n, 0.6, 1.35)[:, None, None, None]
    tint = 1 + torch.randn(n, 3, 1, 1) * 0.06
    pictures = (pictures * tint - 0.5) * _uniform(n, 0.7, 1.25)[:, None, None, None] + 0.5
    pictures = pictures + torch.randn(n, 1, 1, 1) * 0.07
    soft = F.avg_pool2d(F.pad(pictures, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    # beyond 1 it is blur undone: bicubic reduction sharpens as well
    pictures = soft + (pictures - soft) * _uniform(n, 0.0, 1.6)[:, None, None, None]
    pictures = pictures + torch.randn_like(pictures) * (torch.rand(n, 1, 1, 1) ** 4 * 0.12)
    pictures = pictures.clamp(0, 1)
    for i in random.sample(range(n), n // 6):
        pictures[i] = _compressed(pictures[i], random.randint(30, 90))
    return pictures


def normalise(pictures: Tensor) -> Tensor:
    """As open_clip's transform does."""
    mean = torch.tensor(OPENAI_DATASET_MEAN).view(3, 1, 1)
    return (pictures - mean) / torch.tensor(OPENAI_DATASET_STD).view(3, 1, 1)


def _uniform(n: int, low: float, high: float) -> Tensor:
    return torch.rand(n) * (high - low) + low


def _compressed(picture: Tensor, quality: int) -> Tensor:
    pixels = (picture.permute(1, 2, 0) * 255).byte().numpy()
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality)
    return torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1) / 255
