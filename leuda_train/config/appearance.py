"""how the images that the student is trained on are restyled."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from leuda_train.config.values import Part, Share


class StyleConfig(Part):
    """Style randomisation of the images that the student is trained on; not in the paper.

    curve, convolution  how often a random intensity curve and a random shallow network are applied
    noise               largest standard deviation of added noise, in normalised intensities
    """

    curve: Share = 0.0
    convolution: Share = 0.0
    noise: Annotated[float, Field(ge=0, le=2)] = 0.0


class AppearanceConfig(Part):
    """Random appearance by structure, in place of `style`; not in the paper. See `class_style.py`.

    curve, convolution  how often the grey scale is bent, and a random shallow network applied
    free_curves         share of the curves that rise and fall, instead of one of the two
    patchwork           how often one curve holds here and another there
    structures          how often the labelled structures get a brightness and contrast of their own
    fourier             how often low frequencies are borrowed from a target image of the batch
    plain               share of the images left as they are, but for noise and unevenness
    """

    curve: Share = 0.9
    free_curves: Share = 0.5
    patchwork: Share = 0.4
    structures: Share = 0.5
    convolution: Share = 0.2
    fourier: Share = 0.0
    plain: Share = 0.1
