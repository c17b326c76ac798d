'''Inputs with time before samples: the map of a sample is the same alone and in a batch.'''
import pytest
import torch
from helpers import assert_close, divided, explain, random_image
from torch import nn

from zennit_dc import Balanced, Relative, Scaling, SplitCAM, SplitGrad, SplitLRP


TIME, BATCH, FEATURES = 7, 4, 5


class Sequence(nn.Module):
    '''A model of sequences of shape (time, batch, features).'''
    def __init__(self, body, end):
        super().__init__()
        self.first, self.body, self.last, self.end = nn.Linear(FEATURES, 8), body, nn.Linear(8, 3), end

    def forward(self, x):
        hidden = torch.relu(self.first(x))
        hidden = hidden.permute(1, 2, 0) if isinstance(self.body, nn.Conv1d) else hidden
        hidden = self.body(hidden)
        hidden = hidden[0] if isinstance(hidden, tuple) else hidden
        hidden = torch.relu(hidden.permute(2, 0, 1) if isinstance(self.body, nn.Conv1d) else hidden)
        scores = self.last(hidden)
        return {'last': scores[-1], 'mean': scores.mean(0), 'all': scores}[self.end]


class Attended(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2)

    def forward(self, x):
        return x + self.attention(x, x, x, need_weights=False)[0]


BODIES = {
    'rnn': lambda: nn.RNN(8, 8, nonlinearity='relu'), 'gru': lambda: nn.GRU(8, 8), 'lstm': lambda: nn.LSTM(8, 8),
    'attention': Attended, 'encoder': lambda: nn.TransformerEncoder(
        nn.TransformerEncoderLayer(8, 2, 16, 0.), 2, enable_nested_tensor=False
    ), 'convolution': lambda: nn.Conv1d(8, 8, 3, padding=1), 'dense': lambda: nn.Linear(8, 8),
}
COMPOSITES = {
    'balanced': lambda: SplitGrad(stream='+g', canonizers='auto'),
    'lrp': lambda: SplitLRP(1e-2, canonizers='auto'),
    'scaled': lambda: SplitLRP(1e-2, recentering=Scaling(threshold=.1), canonizers='auto'),
    'cam': lambda: SplitCAM('first', canonizers='auto'),
    'cam of a stream': lambda: SplitCAM('first', Balanced(), '+g', canonizers='auto'),
}


def maps(composite, model, input, step=2):
    '''The map of an input, and that of the layer.'''
    leaf = input.clone().requires_grad_()
    with composite.context(model):
        output = model(leaf)
        seed = torch.zeros_like(output)
        seed[(step, slice(None), 1) if model.end == 'all' else (slice(None), 1)] = 1.
        map, = torch.autograd.grad(output, leaf, seed)
    return map, composite.saliency


@pytest.mark.filterwarnings('ignore:canonizers')
@pytest.mark.parametrize('composite', COMPOSITES)
@pytest.mark.parametrize('body, end', [
    (body, end) for body in BODIES for end in ('last', 'mean', 'all')
    if end != 'all' or body not in ('convolution', 'dense')  # of which nothing tells time from samples
])
def test_a_sample_alone_and_in_a_batch(body, end, composite):
    torch.manual_seed(0)
    model, input = Sequence(BODIES[body](), end).double().eval(), random_image(TIME, BATCH, FEATURES)
    whole, saliency = maps(COMPOSITES[composite](), model, input)
    assert whole.any() and torch.equal(model(input), model(input))
    for sample in range(BATCH):
        alone, own = maps(COMPOSITES[composite](), model, input[:, sample:sample + 1])
        assert_close(alone[:, 0], whole[:, sample], 1e-9)
        if saliency is not None:
            assert saliency.shape == (BATCH, TIME)
            assert_close(own[0], saliency[sample], 1e-9)
            # the map in the input's shape has the layer's times
            assert_close(whole[:, sample].sum(1), saliency[sample], 1e-9)


@pytest.mark.filterwarnings('ignore:canonizers')
@pytest.mark.parametrize('body', ['rnn', 'convolution'])
@pytest.mark.parametrize('composite', ['balanced', 'lrp', 'cam'])
def test_time_first_is_samples_first_transposed(body, composite):
    class Transposed(nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model, self.first, self.end = model, model.first, model.end

        def forward(self, x):
            return self.model(x.transpose(0, 1))

    torch.manual_seed(0)
    model, input = Sequence(BODIES[body](), 'mean').double().eval(), random_image(TIME, BATCH, FEATURES)
    expected, layer = maps(COMPOSITES[composite](), Transposed(model), input.transpose(0, 1))
    found, own = maps(COMPOSITES[composite](), model, input)
    assert_close(found.transpose(0, 1), expected, 1e-9)
    if own is not None:
        assert_close(own, layer, 1e-9)


def test_the_axis_is_found_once_for_a_model():
    calls, model = [], Sequence(nn.Linear(8, 8), 'mean').double().eval()
    model.last.register_forward_hook(lambda *_: calls.append(1))
    composite, input = SplitGrad(), random_image(TIME, BATCH, FEATURES)
    maps(composite, model, input)
    first = len(calls)
    maps(composite, model, input)
    assert (first, len(calls)) == (2, 3)


def test_images_whose_samples_are_lost_are_run_with_the_first_axis():
    '''Three images of three channels: the second axis might be that of the output, but is not.'''
    class Apart(nn.Module):
        def __init__(self):
            super().__init__()
            self.last, self.end = nn.Linear(48, 2), 'mean'

        def forward(self, x):
            return torch.stack([self.last(torch.relu(each).flatten()[None])[0] for each in x.unbind()])

    model, input = Apart().double().eval(), random_image(3, 3, 4, 4)
    whole, _ = maps(SplitLRP(1e-2), model, input)
    for sample in range(3):
        assert_close(maps(SplitLRP(1e-2), model, input[sample:sample + 1])[0][0], whole[sample], 1e-10)


def test_balanced_does_not_count_what_is_written_elsewhere():
    '''ReLUs in place of one half of a tensor are not activations of the other half.'''
    class Halves(nn.Module):
        def __init__(self, writes):
            super().__init__()
            self.first, self.last, self.writes, self.end = nn.Linear(5, 8), nn.Linear(4, 3), writes, 'mean'

        def forward(self, x):
            hidden = torch.relu(self.first(x)) * 1.
            kept = hidden[:, 4:]
            if self.writes:
                for _ in range(3):
                    hidden[:, :4].relu_()
            return self.last(kept)

    models = [Halves(writes).double().eval() for writes in (False, True)]
    models[1].load_state_dict(models[0].state_dict())
    expected, found = (maps(SplitGrad(stream='+g'), model, random_image(3, 5))[0] for model in models)
    assert torch.equal(found, expected)


@pytest.mark.parametrize('write', [
    lambda v: v.__setitem__((slice(None), 0), v[:, 0].clone()),
    lambda v: v.__setitem__((slice(None), slice(1)), v * 1.),
])
def test_writing_below_a_layer_keeps_the_samples(write):
    '''Of a single channel, whose axis has the strides of the samples' one.'''
    class Written(nn.Module):
        def __init__(self, write):
            super().__init__()
            self.first, self.second, self.last = (nn.Conv1d(1, 1, 3, padding=1) for _ in range(3))
            self.write, self.end = write, 'mean'

        def forward(self, x):
            hidden = torch.relu(self.first(x))
            self.write(hidden)
            return self.last(torch.relu(self.second(hidden))).flatten(1)

    models = [Written(each).double().eval() for each in (lambda v: None, write)]
    models[1].load_state_dict(models[0].state_dict())
    composites = [SplitCAM('second', .3, '+h', recentering=Relative(.1)) for _ in models]
    for model, composite in zip(models, composites):
        maps(composite, model, random_image(3, 1, 6))
    assert_close(composites[1].saliency, composites[0].saliency, 1e-12)


@pytest.mark.parametrize('kind', ['twice', 'moved', 'joined', 'in place', 'view', 'half'])
def test_balanced_counts_a_relu_of_a_relu_once(kind):
    '''Whichever memory the first one works on: a view for one image, and a copy for a batch.'''
    class Rectified(nn.Module):
        def __init__(self, kind):
            super().__init__()
            self.last, self.kind, self.end = nn.Linear(60, 3), kind, 'mean'

        def forward(self, x):
            hidden = x * 2
            if self.kind == 'twice':
                hidden = torch.relu(hidden)
            elif self.kind == 'moved':
                hidden = torch.relu(hidden).view(len(x), 3, -1).flip(1).to(x.dtype, copy=True).flip(1).view(x.shape)
            elif self.kind == 'joined':
                hidden = torch.cat([torch.relu(each) for each in hidden.split(1)])
            elif self.kind == 'in place':
                hidden.relu_()
            elif self.kind == 'view':
                hidden.permute(0, 2, 3, 1).reshape(-1, 3).relu_()
            elif self.kind == 'half':
                hidden[:, :1].relu_(), hidden[:, 1:].relu_()
            return self.last(torch.relu(hidden).flatten(1))

    models = [Rectified(each).double().eval() for each in (None, kind)]
    models[1].load_state_dict(models[0].state_dict())
    input = random_image(2, 3, 4, 5)
    (expected, _), (found, _) = (maps(SplitGrad(stream='+g'), model, input) for model in models)
    if kind != 'half':  # of which not all is known to be rectified before the second part is
        assert_close(found, expected, 1e-12)
    alone = [maps(SplitGrad(stream='+g'), models[1], image[None])[0][0] for image in input]
    assert_close(torch.stack(alone), found, 1e-12)


def in_halves(model, x):
    half = (len(x) + 1) // 2
    return torch.cat([model(x[:half]), model(x[half:])])


def sorted_rows(model, x):
    order = x.detach()[:, 0].argsort()
    return model(x[order])[order.argsort()]


def some_written(model, x):
    rows, output = torch.where(x.detach()[:, 0] > .5)[0], torch.zeros_like(x)
    if len(rows):
        output[rows] = model(x[rows])
    return x + output


def some_masked(model, x):
    mask, output = x.detach()[:, 0] > .5, x.clone()
    if mask.any():
        output[mask] = model(x[mask])
    return output


def some_copied(model, x):
    rows = torch.where(x.detach()[:, 0] > .5)[0]
    return x.index_copy(0, rows, model(x[rows])) if len(rows) else x


PARTS = {
    'one after the other': lambda model, x: torch.cat([model(x[index:index + 1]) for index in range(len(x))]),
    'split': lambda model, x: torch.cat([model(part) for part in x.split(2)]),
    'halves': in_halves, 'sorted': sorted_rows, 'written': some_written, 'masked': some_masked, 'copied': some_copied,
    'chosen': lambda model, x: model(x.index_select(0, torch.arange(len(x)))),
    'unbound': lambda model, x: torch.stack([model(each[None])[0] for each in x]),
}


@pytest.mark.parametrize('how', PARTS)
@pytest.mark.parametrize('composite', [SplitGrad(), SplitLRP(1e-9), SplitLRP(1e-9, recentering=Scaling(.1, .1))])
def test_samples_that_are_taken_apart_stay_samples(how, composite):
    torch.manual_seed(0)
    layers = nn.ModuleList([nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)]).double()

    class Apart(nn.Module):
        def forward(self, x):
            hidden = PARTS[how](layers[1], torch.relu(layers[0](x)))
            return layers[2](hidden)

    # samples of different sizes, to which others would be re-centered
    images = random_image(5, 6) * torch.tensor([1., 3., .2, 10., 1.]).double()[:, None]
    model = Apart()
    together = explain(composite, model, images, 1)
    for index in range(len(images)):
        # a constant in which others were written is stabilized as well
        assert_close(explain(composite, model, images[index:index + 1], 1), together[index:index + 1], 1e-6)


BACK = {
    'entries': lambda x: x[None] if x.ndim == 1 else x, 'ellipsis': lambda x: x[None, ...] if x.ndim == 1 else x,
    'unsqueeze': lambda x: x.unsqueeze(0) if x.ndim == 1 else x, 'atleast_2d': torch.atleast_2d,
    'view': lambda x: x.view(1, -1) if x.ndim == 1 else x,
}


@pytest.mark.parametrize('back', BACK)
@pytest.mark.parametrize('composite', [SplitGrad(), SplitLRP(), SplitLRP(recentering=Scaling(.1, .1))])
def test_an_axis_of_one_sample_that_is_squeezed_comes_back(back, composite):
    class Squeezed(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second, self.last = nn.Conv2d(3, 8, 3), nn.Linear(8, 8), nn.Linear(8, 3)

        def forward(self, x):
            hidden = torch.relu(self.first(x)).mean((2, 3), keepdim=True).squeeze()
            return self.last(torch.relu(self.second(BACK[back](hidden * 2.))))

    torch.manual_seed(0)
    model, sizes = Squeezed().double(), torch.tensor([1., 5., .2]).double()
    images = random_image(3, 3, 6, 6) * sizes.reshape(3, 1, 1, 1)
    together, accuracy = explain(composite, model, images, 1), divided() if isinstance(composite, SplitLRP) else 1e-12
    for index in range(len(images)):
        assert_close(explain(composite, model, images[index:index + 1], 1), together[index:index + 1], accuracy)
