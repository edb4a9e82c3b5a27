"""Energies of molecules, trained on their forces too: the energy's gradient is in the loss."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from benchmarks.zoo.step import Step
from benchmarks.zoo.stubs import stubs

__all__ = ["ARCHITECTURES"]

MOLECULES, ATOMS = 4, 12
KINDS = (1, 6, 7, 8)

Energy = Callable[[nn.Module, torch.Tensor, torch.Tensor], torch.Tensor]


class ForceField(nn.Module):
    """The error of energies and forces.

    Args:
        network: gives the energies.
        energy: how it is called with the kinds of atoms and their positions, molecules first.
    """

    def __init__(self, network: nn.Module, energy: Energy) -> None:
        super().__init__()
        self.network, self.energy = network, energy

    def forward(
        self,
        kinds: torch.Tensor,
        positions: torch.Tensor,
        energies: torch.Tensor,
        forces: torch.Tensor,
    ) -> torch.Tensor:
        found = self.energy(self.network, kinds, positions)
        (slope,) = torch.autograd.grad(found.sum(), positions, create_graph=True)
        of_forces = nn.functional.mse_loss(-slope, forces)
        return nn.functional.mse_loss(found.view(-1), energies) + of_forces


def _molecules(atoms: int = ATOMS) -> tuple[torch.Tensor, ...]:
    """Atoms in a box: kinds, positions, energies and forces."""
    kinds = torch.tensor(KINDS)[torch.randint(0, len(KINDS), (MOLECULES, atoms))]
    grid = torch.cartesian_prod(*[torch.arange(3.0)] * 3)[:atoms]
    positions = 1.4 * grid + 0.2 * torch.rand(MOLECULES, atoms, 3)
    forces = torch.randn(MOLECULES, atoms, 3)
    return kinds, positions.requires_grad_(), torch.randn(MOLECULES), forces


def _step(network: nn.Module, energy: Energy, atoms: int = ATOMS) -> Step:
    return Step(ForceField(network, energy).train(), partial(_molecules, atoms), None, 1e-5)


def _of(kinds: torch.Tensor) -> torch.Tensor:
    """To which molecule each atom belongs."""
    return torch.arange(len(kinds)).repeat_interleave(kinds.shape[1])


def _pairs(kinds: torch.Tensor) -> torch.Tensor:
    """All pairs of different atoms of the same molecule."""
    molecules, atoms = kinds.shape
    first = torch.arange(atoms).repeat_interleave(atoms - 1)
    second = torch.cat(
        [torch.cat([torch.arange(i), torch.arange(i + 1, atoms)]) for i in range(atoms)]
    )
    start = atoms * torch.arange(molecules).repeat_interleave(len(first))
    return torch.stack([first, second]).repeat(1, molecules) + start


def _schnet() -> Step:
    from torch_geometric.nn import SchNet

    def graph(positions: torch.Tensor, of: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        pairs = _pairs(of.view(MOLECULES, -1))
        return pairs, (positions[pairs[0]] - positions[pairs[1]]).norm(dim=-1)

    def energy(network: nn.Module, kinds: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        return network(kinds.flatten(), positions.flatten(0, 1), _of(kinds))

    network = SchNet(
        hidden_channels=64,
        num_filters=64,
        num_interactions=3,
        num_gaussians=25,
        interaction_graph=graph,
    )
    return _step(network, energy)


def _egnn() -> Step:
    from egnn_pytorch import EGNN_Network

    def energy(network: nn.Module, kinds: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        return network(kinds, positions)[0].sum(dim=(1, 2))

    network = EGNN_Network(num_tokens=10, dim=32, depth=3, m_dim=16)
    return _step(network, energy)


def _se3_transformer() -> Step:
    from se3_transformer_pytorch import SE3Transformer

    def energy(network: nn.Module, kinds: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        mask = torch.ones_like(kinds, dtype=torch.bool)
        return network(kinds, positions, mask, return_type=0).sum(dim=(1, 2))

    network = SE3Transformer(
        num_tokens=10,
        dim=16,
        heads=2,
        dim_head=8,
        depth=1,
        num_degrees=2,
        output_degrees=1,
        num_neighbors=6,
        differentiable_coors=True,
    )
    return _step(network, energy)


def _equiformer() -> Step:
    from equiformer_pytorch import Equiformer

    def energy(network: nn.Module, kinds: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        mask = torch.ones_like(kinds, dtype=torch.bool)
        return network(kinds, positions, mask).type0.sum(dim=(1, 2))

    network = Equiformer(
        num_tokens=10,
        dim=(8, 8),
        dim_head=(8, 8),
        heads=(2, 2),
        num_degrees=2,
        depth=1,
        num_neighbors=6,
        reduce_dim_out=False,
    )
    return _step(network, energy)


def _ani() -> Step:
    with stubs("h5py"):
        from torchani.arch import simple_ani

    def energy(network: nn.Module, kinds: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        return network((kinds, positions)).energies

    network = simple_ani(("H", "C", "N", "O"), lot="wb97x-631gd", self_energies="zero")
    return _step(network.float(), energy)


def _e3nn(**defaults: Any) -> Step:
    """A network of e3nn's that is equivariant under rotations.

    Args:
        defaults: of `e3nn.set_optimization_defaults`; `jit_script_fx=False` runs its code as
            Python, and not as TorchScript.
    """
    import e3nn
    from e3nn.nn.models.v2106.gate_points_networks import SimpleNetwork

    before = e3nn.get_optimization_defaults()
    e3nn.set_optimization_defaults(**defaults)
    network = SimpleNetwork(
        "4x0e", "1x0e", max_radius=2.5, num_neighbors=8.0, num_nodes=ATOMS, mul=8, layers=2, lmax=1
    )
    e3nn.set_optimization_defaults(**before)

    def energy(network: nn.Module, kinds: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        hot = nn.functional.one_hot(kinds.flatten() % 5 % 4, 4).float()
        data = {"pos": positions.flatten(0, 1), "x": hot, "batch": _of(kinds)}
        return network(data)

    return _step(network, energy)


ARCHITECTURES = {
    "schnet": _schnet,
    "egnn": _egnn,
    "se3-transformer": _se3_transformer,
    "equiformer": _equiformer,
    "ani": _ani,
    "e3nn": partial(_e3nn, jit_script_fx=False),
    "e3nn-torchscript": _e3nn,
}
