"""Networks over graphs, of PyTorch Geometric."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from benchmarks.zoo.step import Step

__all__ = ["ARCHITECTURES"]

NODES, EDGES, FEATURES, CLASSES = 512, 4096, 32, 5


def _edges() -> torch.Tensor:
    return torch.randint(0, NODES, (2, EDGES))


def _classified() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return torch.randn(NODES, FEATURES), _edges(), torch.randint(0, CLASSES, (NODES,))


def _nodes(name: str, **sizes: Any) -> Step:
    """A classifier of nodes by its name."""
    from torch_geometric.nn import models

    model = getattr(models, name)(FEATURES, 64, num_layers=3, out_channels=CLASSES, **sizes)
    return Step(model.train(), _classified, nn.functional.cross_entropy)


class _Layers(nn.Module):
    """Layers of message passing with what is between them."""

    def __init__(self, layers: list[nn.Module], width: int) -> None:
        super().__init__()
        self.enter = nn.Linear(FEATURES, width)
        self.layers = nn.ModuleList(layers)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x: torch.Tensor, edges: torch.Tensor) -> torch.Tensor:
        x = self.enter(x)
        for layer in self.layers:
            x = torch.relu(layer(x, edges))
        return self.head(x)


def _of_layers(make: Callable[[], nn.Module]) -> Step:
    model = _Layers([make() for _ in range(3)], 64)
    return Step(model.train(), _classified, nn.functional.cross_entropy)


def _layer(name: str, *args: Any, **sizes: Any) -> Step:
    """A network of one kind of layer, by its name."""
    import torch_geometric.nn as pyg

    return _of_layers(lambda: getattr(pyg, name)(*args, **sizes))


def _gps() -> Step:
    from torch_geometric.nn import GATConv, GPSConv

    return _of_layers(lambda: GPSConv(64, GATConv(64, 16, heads=4), heads=4))


class _Pooled(nn.Module):
    """A network of nodes, added up over each graph."""

    def __init__(self, network: nn.Module, graphs: int) -> None:
        super().__init__()
        self.network, self.graphs = network, graphs

    def forward(self, x: torch.Tensor, edges: torch.Tensor, of: torch.Tensor) -> torch.Tensor:
        from torch_geometric.nn import global_add_pool

        return global_add_pool(self.network(x, edges), of, size=self.graphs)


def _whole_graphs() -> Step:
    from torch_geometric.nn import GIN

    def inputs() -> tuple[torch.Tensor, ...]:
        of = torch.arange(NODES) // (NODES // 32)
        x, edges, _ = _classified()
        return x, edges, of, torch.randn(32, 1)

    model = _Pooled(GIN(FEATURES, 64, 3, out_channels=1), 32)
    return Step(model.train(), inputs, nn.functional.mse_loss)


def _attentive_fp() -> Step:
    from torch_geometric.nn import AttentiveFP

    model = AttentiveFP(FEATURES, 64, 1, edge_dim=8, num_layers=2, num_timesteps=2)

    def inputs() -> tuple[torch.Tensor, ...]:
        of = torch.arange(NODES) // (NODES // 32)
        x, edges, _ = _classified()
        return x, edges, torch.randn(EDGES, 8), of, torch.randn(32, 1)

    return Step(model.train(), inputs, nn.functional.mse_loss)


class _GraphAutoencoder(nn.Module):
    """The loss of edges that are there and of some that are not, and of the codes."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: torch.Tensor, edges: torch.Tensor) -> torch.Tensor:
        code = self.network.encode(x, edges)
        return self.network.recon_loss(code, edges) + self.network.kl_loss() / NODES


def _vgae() -> Step:
    from torch_geometric.nn import VGAE, GCNConv

    class Encoder(nn.Module):
        """Mean and spread of each node's code."""

        def __init__(self) -> None:
            super().__init__()
            self.first = GCNConv(FEATURES, 64)
            self.mean, self.spread = GCNConv(64, 32), GCNConv(64, 32)

        def forward(self, x: torch.Tensor, edges: torch.Tensor) -> tuple[torch.Tensor, ...]:
            x = torch.relu(self.first(x, edges))
            return self.mean(x, edges), self.spread(x, edges)

    return Step(_GraphAutoencoder(VGAE(Encoder())).train(), lambda: _classified()[:2])


class _Ranked(nn.Module):
    """The loss of pairs that should be ranked above others."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, edges: torch.Tensor, pairs: torch.Tensor) -> torch.Tensor:
        ranks = self.network(edges, pairs)
        first, second = ranks.chunk(2)
        return self.network.recommendation_loss(first, second, pairs[0].unique())


def _light_gcn() -> Step:
    from torch_geometric.nn import LightGCN

    model = _Ranked(LightGCN(NODES, 64, 3))
    return Step(model.train(), lambda: (_edges(), torch.randint(0, NODES, (2, 1024))))


def _relations() -> Step:
    from torch_geometric.nn import RGCNConv

    class Network(nn.Module):
        """Two layers, with a kind for each edge."""

        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = RGCNConv(FEATURES, 64, 4), RGCNConv(64, CLASSES, 4)

        def forward(self, x: torch.Tensor, edges: torch.Tensor, kind: torch.Tensor) -> torch.Tensor:
            return self.second(torch.relu(self.first(x, edges, kind)), edges, kind)

    def inputs() -> tuple[torch.Tensor, ...]:
        x, edges, target = _classified()
        return x, edges, torch.arange(EDGES) % 4, target

    return Step(Network().train(), inputs, nn.functional.cross_entropy)


def _graph_unet() -> Step:
    from torch_geometric.nn import GraphUNet

    model = GraphUNet(FEATURES, 64, CLASSES, depth=3)
    return Step(model.train(), _classified, nn.functional.cross_entropy)


ARCHITECTURES = {
    "gcn": partial(_nodes, "GCN"),
    "graphsage": partial(_nodes, "GraphSAGE", jk="cat"),
    "gat": partial(_nodes, "GAT", heads=4, dropout=0.1),
    "gatv2": partial(_nodes, "GAT", heads=4, v2=True),
    "gin": _whole_graphs,
    "attentive-fp": _attentive_fp,
    "edge-cnn": partial(_nodes, "EdgeCNN"),
    "graph-transformer": partial(_layer, "TransformerConv", 64, 16, heads=4),
    "chebyshev": partial(_layer, "ChebConv", 64, 64, K=3),
    "gated-graph": partial(_layer, "GatedGraphConv", 64, num_layers=2),
    "arma": partial(_layer, "ARMAConv", 64, 64, num_stacks=2, num_layers=2),
    "residual-gated": partial(_layer, "ResGatedGraphConv", 64, 64),
    "gps": _gps,
    "vgae": _vgae,
    "light-gcn": _light_gcn,
    "rgcn": _relations,
    "graph-unet": _graph_unet,
}
