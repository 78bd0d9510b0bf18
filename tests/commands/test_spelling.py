"""Do errors name settings as the command line does, where it has them?"""

import pytest

from fxprune.commands.bench import bench
from fxprune.commands.prune import prune
from fxprune.commands.spelling import list_options, speak_options


@pytest.mark.parametrize(
    ("message", "spelled"),
    [
        ("pass batch_sizes=(2,).", "pass --batch 2."),
        ("threads=(1, 8), precision=-1.0: positive", "--threads 1,8, --precision -1.0: positive"),
        ("pass input_shapes={'x': (3, 64, 64)}.", "pass --input-shape x=3x64x64."),
        ("input_shapes names ['x']", "--input-shape names ['x']"),
        ("exclude=['conv'] or verify=False", "exclude=['conv'] or verify=False"),
    ],
)
def test_settings_are_spelled_as_options_of_bench(message: str, spelled: str) -> None:
    assert speak_options(message, list_options(bench)) == spelled


@pytest.mark.parametrize(
    ("message", "spelled"),
    [
        ("pass example_inputs=..., or granularity='channel'", "pass --input ..., or --granularity channel"),
        ("pass example_inputs that the model takes", "pass --input that the model takes"),
        ("leave it out with exclude=['layer1.conv']", "leave it out with --exclude layer1.conv"),
        ("in multiples of align=16; lower them", "in multiples of --align 16; lower them"),
        ("least=8, method=RNI(shift=3) and model='net'", "least=8, method=RNI(shift=3) and model='net'"),
        ("Macs(remaining=nan) is no share; give Sparsity(0.5)", "macs=nan is no share; give sparsity=0.5"),
    ],
)
def test_settings_are_spelled_as_options_of_prune(message: str, spelled: str) -> None:
    assert speak_options(message, list_options(prune)) == spelled
