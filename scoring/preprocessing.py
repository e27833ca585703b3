"""What a model does with an image before its first layer: geometry, channels, normalisation; and the user's settings of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from ..datasets.decoding import CHOICES, CLOSE, INTERPOLATIONS, Geometry
from ..errors import ModelError, did_you_mean

GEOMETRY = tuple(field.name for field in fields(Geometry))
SETTINGS = (*GEOMETRY, "mean", "std")


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """Geometry (done once, when decoding) and normalisation (done on the device).

    `mean` and `std` have one value for each channel: three, or one for a model of grey images.
    """

    geometry: Geometry
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def channels(self) -> int:
        return len(self.mean)

    def to_dict(self) -> dict[str, Any]:
        return {**self.geometry.to_dict(), "mean": list(self.mean), "std": list(self.std)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Preprocessing:
        geometry = {name: value for name, value in values.items() if name in GEOMETRY}
        return cls(geometry=Geometry(**geometry), mean=tuple(values["mean"]), std=tuple(values["std"]))


def merged_preprocessing(
    name: str, settings: Mapping[str, Any], values: Mapping[str, Any], channels: int = 3
) -> Preprocessing:
    """A library's preprocessing of the model `name`, changed by the user's `settings`. Raises ModelError.

    `values` may have `size` as the library has it: a number, or (height, width).
    """
    check_preprocessing(name, settings)
    if channels not in (1, 3):
        raise ModelError(
            f"model '{name}': takes images of {channels} channels (in_chans); images here have 3, or 1 where they are grey"
        )
    merged = {**values, **settings}
    merged["size"] = _one_side(name, merged["size"])
    if merged["interpolation"] not in INTERPOLATIONS:  # the libraries have "random" too
        merged["interpolation"] = "bicubic"
    if merged["mode"] not in CHOICES["mode"]:
        raise ModelError(
            f"model '{name}': its resize mode is '{merged['mode']}', which is not supported; set preprocessing.mode to "
            "shortest or squash"
        )
    for setting in ("mean", "std"):
        merged[setting] = _for_channels(name, setting, merged[setting], channels)
    return Preprocessing.from_dict(merged)


def check_preprocessing(name: str, settings: Mapping[str, Any]) -> None:
    """Raises ModelError for a setting or a value that nothing knows."""

    def refuse(setting: str, value: Any, expected: str) -> ModelError:
        return ModelError(f"model '{name}': preprocessing.{setting} is {value!r}, expected {expected}")

    for setting, value in settings.items():
        if setting not in SETTINGS:
            raise ModelError(
                f"model '{name}': preprocessing has an unknown setting '{setting}'; {did_you_mean(setting, SETTINGS)}"
            )
        if setting in CHOICES and value not in CHOICES[setting]:
            known = CHOICES[setting]
            raise refuse(setting, value, f"{', '.join(known[:-1])} or {known[-1]}; {did_you_mean(str(value), known)}")
        if setting == "size" and not (isinstance(value, int) and not isinstance(value, bool) and value >= 1):
            raise refuse(
                setting, value, "a whole number of pixels; images are square here, so one number is both sides"
            )
        if setting == "crop_pct" and not (_is_number(value) and 0 < value <= 1):
            raise refuse(setting, value, "a share of the image, above 0 and at most 1")
        if setting == "reduced_jpeg" and not (isinstance(value, bool) or value == CLOSE):
            raise refuse(setting, value, f"true, false or '{CLOSE}'")
        if setting == "exif_rotation" and not isinstance(value, bool):
            raise refuse(setting, value, "true or false")
        if setting in ("mean", "std"):
            numbers = _numbers(value)
            if numbers is None or len(numbers) not in (1, 3):
                raise refuse(setting, value, "three numbers, or one for all channels")
            if setting == "std" and min(numbers) <= 0:
                raise refuse(setting, value, "numbers above 0")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _numbers(value: Any) -> tuple[float, ...] | None:
    given = tuple(value) if isinstance(value, list | tuple) else (value,)
    return given if all(_is_number(number) for number in given) else None


def _one_side(name: str, size: Any) -> int:
    sides = set(size) if isinstance(size, list | tuple) else {size}
    if len(sides) > 1:
        raise ModelError(
            f"model '{name}': takes images of {' x '.join(map(str, size))} pixels; images are square here: set "
            "preprocessing.size to one number, if the model takes any size"
        )
    return int(sides.pop())


def _for_channels(name: str, setting: str, value: Any, channels: int) -> tuple[float, ...]:
    """As many values as channels. One value serves three channels; a grey image has the mean of three."""
    numbers = _numbers(value)
    if numbers is None or len(numbers) not in (1, 3):
        raise ModelError(f"model '{name}': its {setting} is {value!r}; set preprocessing.{setting} to three numbers")
    if len(numbers) == channels:
        return numbers
    return numbers * channels if channels > 1 else (sum(numbers) / len(numbers),)
