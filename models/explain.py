"""What in its input a model went by: Grad-CAM for pictures, SHAP values for tables.

In go a model, a few rows and, of a table, rows to compare with; out come a heat map as large as the picture, or one
number for each feature. Selvaraju et al., "Grad-CAM: visual explanations from deep networks via gradient-based
localization", ICCV 2017; Lundberg & Lee, "A unified approach to interpreting model predictions", NeurIPS 2017.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from models.errors import BadInput
from models.images import Images, to_tensor

if TYPE_CHECKING:
    from torch import nn

Heat = NDArray[np.float32]
"""[n, height, width] in [0, 1]: 1 where the model looked most, all 0 where nothing spoke for the class."""


def last_convolution(model: nn.Module) -> nn.Module:
    """The model's last convolution with the norm and activation right after it: the layer that Grad-CAM reads.

    What pools or mixes places comes after it and is left out.

    Raises:
        BadInput: the model has no convolution.
    """
    from torch import nn
    from torch.nn.modules import activation, batchnorm, instancenorm

    same_place = (nn.GroupNorm, nn.LayerNorm, batchnorm._BatchNorm, instancenorm._InstanceNorm)
    found: nn.Module | None = None
    open_ = False
    for module in model.modules():
        if next(module.children(), None) is not None:
            continue
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
            found, open_ = module, True
        elif open_ and (isinstance(module, same_place) or module.__module__ == activation.__name__):
            found = module
        else:
            open_ = False
    if found is None:
        raise BadInput(f"a {type(model).__name__} has no convolution, so Grad-CAM has nothing to read")
    return found


def grad_cam(model: nn.Module, images: Images, classes: NDArray[np.int64]) -> Heat:
    """Where each picture speaks for a class. images: uint8 [n, height, width, channels]; classes: [n].

    Raises:
        BadInput: the model has no convolution.
    """
    import torch
    from captum.attr import LayerAttribution, LayerGradCam

    height, width = images.shape[1:3]
    if not len(images):
        return np.zeros((0, height, width), dtype=np.float32)
    model = model.eval()
    reader = LayerGradCam(model, last_convolution(model))
    found = reader.attribute(to_tensor(images), target=torch.from_numpy(classes), relu_attributions=True)
    upsampled = LayerAttribution.interpolate(found.detach(), (height, width), "bilinear")
    heat = upsampled[:, 0].numpy().astype(np.float32)
    return np.asarray(heat / np.maximum(heat.max(axis=(1, 2), keepdims=True), 1e-12), dtype=np.float32)


def overlay(image: NDArray[np.uint8], heat: NDArray[np.float32], size: int = 168) -> NDArray[np.uint8]:
    """A picture in grey with its heat over it: uint8 [size, size · width / height, 3].

    image: uint8 [height, width, channels]; heat: [height, width] in [0, 1]. What is cold stays grey, so that the
    picture can still be read.
    """
    from matplotlib import colormaps
    from PIL import Image

    height, width = image.shape[:2]
    shape = (round(size * width / height), size)
    grey = np.rint(image.astype(np.float32).mean(axis=2)).astype(np.uint8)
    back = np.asarray(Image.fromarray(grey).resize(shape, Image.Resampling.NEAREST), dtype=np.float32)[..., None]
    warmth = np.asarray(Image.fromarray(heat).resize(shape, Image.Resampling.BICUBIC)).clip(0.0, 1.0)[..., None]
    colour = colormaps["inferno"](warmth[..., 0])[..., :3].astype(np.float32) * 255.0
    share = 0.65 * np.sqrt(warmth)
    return np.asarray(np.rint((1.0 - share) * back + share * colour).clip(0, 255), dtype=np.uint8)


def shap_values(model: nn.Module, background: NDArray[np.floating], x: NDArray[np.floating]) -> NDArray[np.float64]:
    """[n, features]: how far each feature moves a row's log-odds from the mean over the background.

    background: [m, features], the rows that say what is usual; x: [n, features]; the model: a linear layer with one
    output, as of logistic regression, for which the values are exact: weight · (x - mean of the background).

    Raises:
        BadInput: there is no background, its features are not those of x, or the model is another one.
    """
    from torch import nn

    if not isinstance(model, nn.Linear) or model.out_features != 1:
        raise BadInput(f"SHAP values are exact for a linear layer with one output, and this is {model}")
    if not len(background) or background.shape[1:] != x.shape[1:]:
        raise BadInput(f"SHAP compares rows of one kind: the background is {background.shape}, the rows are {x.shape}")
    import shap  # takes seconds, and nothing else here wants it

    weight = model.weight.detach().double().numpy()[0]
    bias = float(model.bias.detach()[0]) if model.bias is not None else 0.0
    # All of the background: by itself SHAP takes the mean of 100 of its rows.
    usual = shap.maskers.Independent(background.astype(np.float64), max_samples=len(background))
    return np.asarray(shap.LinearExplainer((weight, bias), usual).shap_values(x.astype(np.float64)), dtype=np.float64)
