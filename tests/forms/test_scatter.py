'''Writing at constant indices, and models that do: graph networks, mixtures of experts, segmentation, transformers of
images.'''
import pytest
import torch
from helpers import assert_close, explain, random_image
from jacobians import require_moved_relevance, require_relevance, require_sensitivities, require_streams
from small_models import Calling, pair_of
from torch import nn
from torch.nn import functional as F

from zennit_dc import SplitGrad, SplitLRP, SplitTensor
from zennit_dc.core.pair import Settings


SHAPE = (2, 4, 6)
SOURCE, TARGET = torch.tensor([0, 1, 2, 3, 3]), torch.tensor([1, 2, 3, 0, 1])
PLACES = TARGET[:, None].expand(2, 5, 6)
ADJACENCY = torch.zeros(4, 4).index_put((TARGET, SOURCE), torch.tensor([1., .5, -2., 1., .3])).double()


def zeros(*shape):
    return torch.zeros(*(shape or SHAPE)).double()


def written(x, shape, index, part):
    output = zeros(*shape)
    output[index] = part(x)
    return output


SUMS = {
    'index_add': lambda x: zeros().index_add(1, TARGET, x[:, SOURCE]),
    'index_add in place': lambda x: zeros().index_add_(1, TARGET, x[:, SOURCE], alpha=-2),
    'scatter_add': lambda x: zeros().scatter_add(1, PLACES, x[:, SOURCE]),
    'scatter_add in place': lambda x: torch.zeros_like(x).scatter_add_(1, PLACES, x[:, SOURCE]),
    'scatter_reduce': lambda x: zeros().scatter_reduce(1, PLACES, x[:, SOURCE], 'sum'),
    'means': lambda x: zeros().scatter_reduce(1, PLACES, x[:, SOURCE], 'mean', include_self=False),
    'means with self': lambda x: zeros().scatter_reduce(1, PLACES, x[:, SOURCE], 'mean'),
    'index_put': lambda x: zeros().index_put((torch.arange(2)[:, None], TARGET), x[:, SOURCE], accumulate=True),
    'index_reduce': lambda x: zeros().index_reduce(1, TARGET, x[:, SOURCE], 'mean'),
}
MOVES = {
    'scatter': lambda x: zeros(2, 4, 6, 6).scatter(1, torch.arange(4).flip(0)[:, None, None].expand(2, 4, 6, 6), x),
    'index_copy': lambda x: x.index_copy(1, torch.tensor([0]), x[:, 1:2]),
    'index_fill': lambda x: x.index_fill(1, torch.tensor([0]), 0.),
    'index_put': lambda x: x.index_put((torch.tensor([0]),), x[1]),
    'writing into zeros': lambda x: written(x, (2, 4, 8, 8), (..., slice(1, -1), slice(1, -1)), lambda x: x),
    'writing one by one': lambda x: one_by_one(x),
    'writing at a mask': lambda x: written(x, (3, 4, 6, 6), torch.tensor([True, False, True]), lambda x: x),
    'copy': lambda x: torch.zeros_like(x).copy_(x), 'copy into a view': lambda x: copied(x),
    'select_scatter': lambda x: zeros(2, 4, 6, 6).select_scatter(x[:, 1], 1, 2),
    'slice_scatter': lambda x: zeros(2, 4, 6, 6).slice_scatter(x[:, :2], 1, 1, 3),
    'masked_scatter': lambda x: zeros(2, 4, 6, 6).masked_scatter(torch.arange(6) > 2, x),
    'tril': lambda x: x.tril(), 'triu': lambda x: torch.triu(x, 1), 'hsplit': lambda x: x.hsplit(2)[1],
    'dsplit': lambda x: torch.dsplit(x, [2, 3])[2], 'column_stack': lambda x: torch.column_stack([x, x[:, :1]]),
    'broadcast': lambda x: torch.broadcast_tensors(x[:, :1], x)[0], 'nan_to_num': lambda x: torch.nan_to_num(x),
    'as_strided': lambda x: x.as_strided((2, 4, 5, 3), (144, 36, 6, 1)), 'positive': lambda x: +x,
    'windows of a view': lambda x: x[:, 1:].as_strided((2, 4, 3), (144, 6, 1), 36),
}


def one_by_one(x):
    output = zeros(4, 6, 6)
    for index in range(4):
        output[index] = x[0, index]
    return output


def copied(x):
    output = zeros(2, 6, 6, 6)
    output[:, :4].copy_(x)
    output.narrow(1, 4, 2).copy_(x[:, 1:3])
    return output


@pytest.mark.parametrize('name', SUMS)
def test_sums_at_places(name):
    require_streams(SHAPE, SUMS[name])
    require_sensitivities(SHAPE, SUMS[name])
    require_relevance(SHAPE, SUMS[name])


@pytest.mark.parametrize('name', MOVES)
def test_copies_to_places(name):
    require_streams((2, 4, 6, 6), MOVES[name])
    require_sensitivities((2, 4, 6, 6), MOVES[name])
    require_moved_relevance(MOVES[name])


@pytest.mark.parametrize('name, function', {
    'differences': lambda x: x.diff(dim=2), 'differences of differences': lambda x: torch.diff(x, 2, 1),
    'a matrix from the left': lambda x: ADJACENCY @ x, 'of nodes': lambda x: ADJACENCY @ x[0],
    'sparse': lambda x: torch.sparse.mm(ADJACENCY.to_sparse(), x[1]),
    'inner': lambda x: torch.inner(x, random_image(6)),
    'sparse rows': lambda x: ADJACENCY.to_sparse_csr() @ x[1], 'outer': lambda x: torch.outer(x[0, 0], ADJACENCY[0]),
}.items())
def test_products_and_differences(name, function):
    require_streams(SHAPE, function)
    require_sensitivities(SHAPE, function)


def test_sums_of_pairs_at_places():
    target, source = pair_of((2, 4, 3)), pair_of((2, 5, 3), 7)
    places = PLACES[..., :3]
    for output in (
        lambda t, s: t.index_add(1, TARGET, s), lambda t, s: t.scatter_add(1, places, s),
        lambda t, s: t.scatter_reduce(1, places, s, 'mean'),
    ):
        found = output(target, source)
        assert torch.equal(found.difference, output(target.difference, source.difference))
        assert_close(found.stream_sum, output(target.stream_sum, source.stream_sum))


@pytest.mark.parametrize('include_self', [True, False])
@pytest.mark.parametrize('reduce', ['amax', 'amin'])
@pytest.mark.parametrize('pooling', ['wta', 'convex'])
def test_largest_at_places_are_maxima_over_windows(include_self, reduce, pooling):
    x, places = pair_of((2, 5, 3)), torch.tensor([0, 0, 2, 2, 2])
    x.split_pass.settings = Settings(pooling)
    target = x[:, :4] * .5
    found = target.scatter_reduce(1, places[:, None].expand(2, 5, 3), x, reduce, include_self=include_self)
    for place in range(4):
        window = [*x[:, places == place].unbind(1), *[target[:, place]] * (include_self or place in (1, 3))]
        expected = getattr(torch.stack(window), reduce)(0)
        assert_close(found[:, place].difference, expected.difference)
        assert_close(found[:, place].stream_sum, expected.stream_sum)


def test_products_of_entries_at_places_are_refused():
    with pytest.raises(NotImplementedError, match='prod'):
        pair_of(SHAPE).scatter_reduce(1, PLACES, pair_of((2, 5, 6)), 'prod')


# models

class Convolution(nn.Module):
    '''The sum of a node's neighbours, of which messages come by indices, by a dense or by a sparse matrix.'''
    def __init__(self, how, inputs, outputs):
        super().__init__()
        self.linear, self.how = nn.Linear(inputs, outputs), how

    def forward(self, h):
        h = self.linear(h)
        if self.how == 'messages':
            return h.new_zeros(h.shape).index_add_(0, TARGET, h[SOURCE] * ADJACENCY[TARGET, SOURCE][:, None])
        return ADJACENCY @ h if self.how == 'dense' else torch.sparse.mm(ADJACENCY.to_sparse(), h)


class GCN(nn.Module):
    '''A graph convolutional network with a readout over nodes.'''
    def __init__(self, how):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.other, self.last = Convolution(how, 5, 8), Convolution(how, 8, 8), nn.Linear(8, 3)
        self.double()

    def forward(self, x):
        return self.last(F.relu(self.other(F.relu(self.first(x)))).mean(0, keepdim=True))


@pytest.mark.parametrize('composite', [lambda: SplitGrad(.3), lambda: SplitLRP(1e-3)])
def test_graph_convolutions_have_one_map_however_they_are_written(composite):
    x = random_image(4, 5)
    one, *others = (explain(composite(), GCN(how), x, 1) for how in ('dense', 'messages', 'sparse'))
    assert one.abs().max() > 0
    if isinstance(composite(), SplitLRP):
        # messages are stabilized one by one
        assert_close(others[1], one, 1e-9)
        return
    for other in others:
        assert_close(other, one, 1e-9)


class GIN(nn.Module):
    '''A graph isomorphism network, whose readout is the largest over the nodes of each of two graphs.'''
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList([nn.Linear(5, 5), nn.Linear(5, 5)])
        self.last = nn.Linear(5, 3)
        self.double()

    def forward(self, x):
        for layer in self.layers:
            around = torch.zeros(4, 5).double()
            around.scatter_add_(0, TARGET[:, None].expand(5, 5), x[SOURCE])
            x = F.relu(layer(1.1 * x + around))
        graphs = torch.tensor([0, 0, 1, 1])[:, None].expand(4, 5)
        return self.last(x.new_zeros(2, 5).scatter_reduce(0, graphs, x, 'amax', include_self=False))


class SegNet(nn.Module):
    '''Upwards by the places of the maxima on the way down.'''
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.down, self.up = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 3, 3, padding=1)
        self.pool, self.unpool = nn.MaxPool2d(2, return_indices=True), nn.MaxUnpool2d(2)
        self.double()

    def forward(self, x):
        x, places = self.pool(self.down(x).relu())
        return self.up(self.unpool(x, places)).mean((2, 3))


class SpatialTransformer(nn.Module):
    '''An image that is sampled where another part of the network says, which is a constant.'''
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.theta, self.conv = nn.Linear(2 * 36, 6), nn.Conv2d(2, 3, 3)
        self.double()

    def forward(self, x):
        theta = self.theta(x.flatten(1)).detach().view(-1, 2, 3)
        x = F.grid_sample(x, F.affine_grid(theta, x.shape, align_corners=False), align_corners=False)
        return self.conv(x).relu().mean((2, 3))


class Experts(nn.Module):
    '''A mixture of experts, each of which writes its samples into a tensor of zeros; maybe without those that have
    none.'''
    def __init__(self, how='index_add', skips=False):
        super().__init__()
        torch.manual_seed(0)
        self.gate, self.last, self.how, self.skips = nn.Linear(5, 3), nn.Linear(4, 3), how, skips
        self.experts = nn.ModuleList(nn.Linear(5, 4) for _ in range(3))
        self.double()

    def forward(self, x):
        choice = self.gate(x).argmax(1)
        output = torch.zeros(len(x), 4, dtype=x.dtype)
        for index, expert in enumerate(self.experts):
            chosen = torch.where(choice == index)[0]
            if self.skips and not len(chosen):
                continue
            if self.how == 'index_add':
                output.index_add_(0, chosen, expert(x[chosen]).relu())
            elif self.how == 'index':
                output[chosen] = expert(x[chosen]).relu()
            else:
                output[choice == index] += expert(x[choice == index]).relu()
        return self.last(output)


@pytest.mark.parametrize('model, shape', [
    (GIN(), (4, 5)), (SegNet(), (2, 2, 6, 6)), (SpatialTransformer(), (2, 2, 6, 6)), (Experts(), (4, 5)),
    (Experts('index'), (4, 5)), (Experts('mask'), (4, 5)),
], ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else '')
def test_half_of_the_gradient(model, shape):
    x = random_image(*shape).requires_grad_()
    expected, = torch.autograd.grad(model(x)[:, 1].sum(), x)
    assert_close(explain(SplitGrad(.5), model, x, 1), expected / 2)
    assert explain(SplitLRP(), model, x, 1).abs().max() > 0


def test_experts_have_one_map_however_they_are_written():
    x = random_image(4, 5)
    one, *others = (explain(SplitGrad(.2), Experts(how), x, 1) for how in ('index_add', 'index', 'mask'))
    for other in others:
        assert_close(other, one)


@pytest.mark.parametrize(('how', 'skips'), [
    ('index_add', True), ('index_add', False), ('index', False), ('mask', False)
])
def test_relevance_of_a_sample_does_not_depend_on_the_experts_of_others(how, skips):
    model, x = Experts(how, skips), random_image(6, 5)
    maps = explain(SplitLRP(1e-9), model, x, 1)
    for index in range(len(x)):
        # constants are stabilized as well
        assert_close(explain(SplitLRP(1e-9), model, x[index:index + 1], 1), maps[index:index + 1], 1e-6)


FILLED = {
    'index_add': lambda x, part: x.index_add(1, torch.tensor([1, 1]), part),
    'scatter_add': lambda x, part: x.scatter_add(1, torch.ones(2, 2, 6, dtype=torch.int64), part),
    'scatter_reduce': lambda x, part: x.scatter_reduce(1, torch.ones(2, 2, 6, dtype=torch.int64), part, 'mean'),
    'index_put': lambda x, part: x.index_put((torch.arange(2)[:, None], torch.tensor([1, 1])), part, accumulate=True),
}


@pytest.mark.parametrize('name', FILLED)
def test_places_where_nothing_is_added_share_no_relevance(name):
    torch.manual_seed(0)
    first, last = nn.Linear(40, 6, bias=False).double(), nn.Linear(6, 3, bias=False).double()

    def forward(x):
        x = first(x).relu()
        return last(FILLED[name](x, x[:, :2] * 1.)).mean(1)

    x, total = random_image(2, 4, 40), 0.
    for stream in ('positive', 'negative'):
        total = total + explain(SplitLRP(1e-12, stream), Calling(forward), x, 1).sum((1, 2))
    assert_close(total, torch.ones(2).double(), 1e-8)


def test_adding_at_a_mask_of_a_comparison():
    '''Entries of a plain tensor at a mask are as plain as it is; those at integers may be a function with jumps.'''
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.gate, self.dense = nn.Linear(5, 1).double(), nn.Linear(5, 4).double()

        def forward(self, x):
            mask, output = self.gate(x)[..., 0] > 0., torch.ones(*x.shape[:-1], 4, dtype=x.dtype)
            output[mask] += self.dense(x[mask]).relu()
            output[~mask] -= x[~mask][..., :4]
            return output.sum(1)

    model, x = Masked(), random_image(3, 6, 5).requires_grad_()
    expected, = torch.autograd.grad(model(x)[:, 1].sum(), x)
    assert_close(explain(SplitGrad(.5), model, x, 1), expected / 2, 1e-12)
    assert explain(SplitLRP(), model, x, 1).any()
    slopes = torch.tensor([.1, 1.]).double()
    leaky = Calling(lambda x: (x := 2 * x) * slopes[(x > 0).long()])
    with SplitGrad().context(leaky), pytest.raises(NotImplementedError, match='comparison'):
        leaky(x)


def test_only_floating_point_tensors_become_pairs():
    with pytest.raises(NotImplementedError, match='int64'):
        torch.zeros(2, 3, dtype=torch.int64)[0] = SplitTensor.of(torch.ones(3))
