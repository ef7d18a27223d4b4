"""A TorchScript that does more than compute is refused before any of it runs."""

from __future__ import annotations

import warnings
import zipfile
from pathlib import Path

import pytest
import torch

from leuda_deploy.errors import ModelError
from leuda_train.export.elsewhere.torchscript import load_torchscript

VICTIM = "victim.txt"
SAVES = f'torch.save(x, "{VICTIM}")'
MAPS = f'x = x + torch.from_file("{VICTIM}", True, 4, dtype=torch.uint8)[0]'


class OnLoading(torch.nn.Module):
    """Writes as soon as it is loaded."""

    def __init__(self) -> None:
        super().__init__()
        self.values, self.training = torch.zeros(3), False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x

    @torch.jit.export
    def __getstate__(self) -> tuple[torch.Tensor, bool]:
        return (self.values, self.training)

    @torch.jit.export
    def __setstate__(self, state: tuple[torch.Tensor, bool]) -> None:
        self.values, self.training = state[0], state[1]
        torch.save(self.values, "victim.txt")


class Blocks(torch.nn.Module):
    """As networks are: children with numbers for names, branches, errors, warnings."""

    def __init__(self) -> None:
        super().__init__()
        layers = [torch.nn.Conv3d(1, 2, 3, padding=1), torch.nn.InstanceNorm3d(2), torch.nn.PReLU()]
        self.layers = torch.nn.Sequential(*layers, torch.nn.Upsample(scale_factor=2.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


def script(module: torch.nn.Module, path: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(module.eval()).save(str(path))
    return path


def with_code(path: Path, line: str) -> Path:
    """The same archive, with a line more in its forward()."""
    with zipfile.ZipFile(path) as given:
        members = {name: given.read(name) for name in given.namelist()}
    with zipfile.ZipFile(path, "w") as made:
        for name, data in members.items():
            if name.endswith("code/__torch__.py") or "test_torchscript.py" in name:
                data = data.replace(
                    b"    layers = self.layers", f"    {line}\n    layers = self.layers".encode()
                )
            made.writestr(name, data)
    return path


@pytest.fixture
def victim(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / VICTIM).write_text("of the user")
    return tmp_path / VICTIM


def test_what_writes_as_soon_as_it_is_loaded_is_not_loaded(victim: Path, tmp_path: Path) -> None:
    path = script(OnLoading(), tmp_path / "net.ts")
    with pytest.raises(ModelError, match="'save'"):
        load_torchscript(path)
    assert victim.read_text() == "of the user"


@pytest.mark.parametrize(
    ("line", "word"),
    [
        (SAVES, "save"),
        (MAPS, "from_file"),
        ('getattr(torch, "s\\x61ve")(x, "victim.txt")', "getattr"),
        ('getattr(torch, "sa" "ve")(x, "victim.txt")', "getattr"),
        ('ops.image.write_file("victim.txt", x)', "ops"),
        ('print("all is well")', "print"),
    ],
)
def test_no_operator_reaches_out_however_it_is_spelt(
    victim: Path, tmp_path: Path, line: str, word: str
) -> None:
    path = with_code(script(Blocks(), tmp_path / "net.ts"), line)
    with pytest.raises(ModelError, match=f"'{word}'"):
        load_torchscript(path)
    assert victim.read_text() == "of the user"


def test_two_members_of_one_name_are_refused(tmp_path: Path) -> None:
    path = script(Blocks(), tmp_path / "net.ts")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("NET/Code/__torch__.py", "")
        archive.writestr("net/code/__torch__.py", "")
    with pytest.raises(ModelError):
        load_torchscript(path)


@pytest.mark.filterwarnings("ignore:.*deprecated:DeprecationWarning")
def test_a_network_is_as_torch_loads_it(tmp_path: Path) -> None:
    path = script(Blocks(), tmp_path / "net.ts")
    x = torch.randn(1, 1, 4, 4, 4)
    assert torch.equal(load_torchscript(path)(x), torch.jit.load(str(path))(x))
