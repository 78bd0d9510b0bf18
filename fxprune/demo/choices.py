"""Which names does the demo take? Here without torch, so that the command line's help is quick."""

from typing import Literal

MethodName = Literal["feather", "st3", "st3-sigma"]
Granularity = Literal["channel", "weight"]
Device = Literal["cpu", "cuda"]

DIGIT_NET = "digitnet"
"""The name of the demo's own small ResNet; every other name is torchvision's."""
