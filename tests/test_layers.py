'''Where maps at a layer are read: after the activation into which its output goes; and the last feature map.'''
import warnings

import pytest
import torch
import torchvision
from helpers import assert_close, random_image
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from zennit.attribution import Gradient
from zennit.composites import EpsilonPlus

from zennit_dc import SplitCAM, SplitGrad, SplitLRP
from zennit_dc.attribution import class_relevance, gradient_at, recorded
from zennit_dc.data.classifiers import (
    IMAGENET_PREPROCESSING,
    Classifier,
    last_feature_map,
    last_layer,
    layers,
    middle_feature_map,
)
from zennit_dc.logits import Logits
from zennit_dc.methods import attributor, saliency_map


IMAGE, TARGETS = random_image(2, 3, 16, 16), torch.tensor([1, 2])
PEERS = ('layercam', 'gradcam', 'gradcam++', 'guided-gradcam', 'guided-backprop', 'lrp-gamma')


def classifier_of(model, size=16):
    '''A classifier of images of a size.'''
    return Classifier('own', model, IMAGENET_PREPROCESSING(crop_size=size, resize_size=size), None)


def drawn(model):
    '''A model in evaluation mode, with random values for all that is constant at first.'''
    generator = torch.Generator().manual_seed(0)
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.is_floating_point() and (tensor == tensor.flatten()[0]).all():
            tensor.data = .5 + torch.rand(tensor.shape, generator=generator)
    return model.eval()


class Net(nn.Module):
    '''A residual network that is written with modules, or with functions of the same names.'''
    def __init__(self, kind):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm1 = nn.Conv2d(3, 5, 3, padding=1, bias=False), nn.BatchNorm2d(5)
        self.second, self.norm2 = nn.Conv2d(5, 5, 3, padding=1, bias=False), nn.BatchNorm2d(5)
        self.third, self.norm3 = nn.Conv2d(5, 6, 3, stride=2, bias=False), nn.BatchNorm2d(6)
        self.pool, self.head, self.kind = nn.AdaptiveAvgPool2d(1), nn.Linear(6, 4), kind  # for which Zennit has rules
        if kind.startswith('module'):
            in_place = kind.endswith('in place')
            self.act1, self.act2, self.act3 = nn.ReLU(in_place), nn.ReLU(in_place), nn.ReLU(in_place)
        drawn(self).double()

    def activated(self, number, x):
        '''What an activation makes.'''
        if self.kind.startswith('module'):
            return getattr(self, f'act{number}')(x)
        return {'function': F.relu, 'method': torch.Tensor.relu, 'clamped': lambda x: x.clamp(min=0)}.get(
            self.kind, lambda x: F.relu(x, inplace=True)
        )(x)

    def forward(self, x):
        x = self.activated(1, self.norm1(self.first(x)))
        x = self.activated(2, self.norm2(self.second(x)) + x)
        return self.head(self.pool(self.activated(3, self.norm3(self.third(x)))).flatten(1))


KINDS = ('module', 'module in place', 'function', 'method', 'function in place', 'clamped')


def map_at(method, model, layer):
    '''A peer's map.'''
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        return attributor(method, classifier_of(model), layer=layer)(IMAGE, class_relevance(TARGETS))[1]


@pytest.mark.parametrize('method', PEERS)
@pytest.mark.parametrize('layer', ['norm1', 'norm2', 'second', 'norm3'])
def test_modules_and_functions(method, layer):
    if method.startswith('g'):
        pytest.importorskip('captum')
    expected = map_at(method, Net('module'), layer)
    for kind in KINDS[1:]:
        if method.startswith('guided') and kind == 'clamped':
            continue  # which these methods do not look for
        if method.startswith('guided') and not kind.startswith('module'):
            with pytest.raises(ValueError, match='outside of'):
                map_at(method, Net(kind), layer)
        else:
            assert_close(map_at(method, Net(kind), layer), expected)


@pytest.mark.parametrize('method', PEERS)
@pytest.mark.parametrize('kind', KINDS[:2])
def test_after_an_activation(method, kind):
    '''It is the map at the module of the activation.'''
    if method.startswith('g'):
        pytest.importorskip('captum')
    model = Net(kind)
    for number in (1, 3):
        assert torch.equal(map_at(method, model, f'norm{number}'), map_at(method, model, f'act{number}'))
    if method in ('layercam', 'gradcam'):
        assert not torch.equal(map_at(method, model, 'norm2'), map_at(method, model, 'act2'))


@pytest.mark.parametrize('layer, activation', [('norm1', 'act1'), ('norm3', 'act3'), ('act2', 'act2')])
def test_gradcam_is_captums_after_the_activation(layer, activation):
    attr, model = pytest.importorskip('captum.attr'), Net('module')
    expected = attr.LayerGradCam(model, getattr(model, activation)).attribute(IMAGE.clone(), TARGETS)
    expected = F.interpolate(expected, (16, 16), mode='bilinear').expand(-1, 3, -1, -1) / 3.
    assert_close(map_at('gradcam', model, layer), expected.detach())


class Direct(nn.Module):
    '''A convolution, a function that uses its output, and a head.'''
    def __init__(self, function, **modules):
        super().__init__()
        torch.manual_seed(0)
        self.before, self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3, padding=1), nn.Linear(4, 4)
        self.function = function
        for name, module in modules.items():
            self.add_module(name, module)
        self.double().eval()

    def forward(self, x):
        return self.head(self.function(self.conv(self.before(x))).mean((2, 3)))


ACTIVATIONS = (
    nn.CELU, nn.ELU, nn.GELU, nn.Hardshrink, nn.Hardsigmoid, nn.Hardswish, nn.Hardtanh, nn.LeakyReLU, nn.LogSigmoid,
    nn.Mish, nn.PReLU, nn.ReLU, nn.ReLU6, nn.RReLU, nn.SELU, nn.Sigmoid, nn.SiLU, nn.Softplus, nn.Softshrink,
    nn.Softsign, nn.Tanh, nn.Tanhshrink,
)
FUNCTIONS = {
    'relu': F.relu, 'relu_': F.relu_, 'in place': lambda x: F.relu(x, True), 'method': lambda x: x.relu(),
    'method in place': lambda x: x.relu_(), 'by keyword': lambda x: torch.relu(input=x),
    'clamp': lambda x: torch.clamp(x, 0., 6.), 'clip_': lambda x: x.clip_(0., 6.),
    'statement': lambda x: [x.sigmoid_(), x][1], 'threshold': lambda x: F.threshold(x, 0., .5),
    'after reading a number': lambda x: F.relu(x) if x.max().item() + float(x.std()) > -1e9 and (x > -1e9).all() else x,
    'before reading numbers': lambda x: [F.relu(x), float(x.mean()), x.amin().detach().numpy()][0],
    'after questions': lambda x: F.silu(x) if x.shape[1] == x.size(1) == 4 and x.dtype.is_floating_point and len(x)
    and x.dim() == x.ndim == 4 and x.is_contiguous() and not x.is_cuda else x,
    'in a checkpoint': lambda x: checkpoint(F.relu, x, use_reentrant=False),
    **{each.__name__: each().double().eval() for each in ACTIVATIONS}, 'Threshold': nn.Threshold(0., .5),
}
class Swish(torch.autograd.Function):
    '''An activation with a gradient of its own.'''
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return F.silu(x)

    @staticmethod
    def backward(ctx, gradient):
        x, = ctx.saved_tensors
        return gradient * (x.sigmoid() * (1. + x * (1. - x.sigmoid())))


OTHER_USES = {
    'autograd function': Swish.apply,
    'sum': lambda x: F.relu(x + 1.), 'two': lambda x: F.relu(x) + x, 'twice': lambda x: F.relu(x) * F.relu(x),
    'swish of two': lambda x: x * torch.sigmoid(x), 'view': lambda x: F.relu(x.flatten(2)).unflatten(2, (14, 14)),
    'number': lambda x: F.relu(x) * x.mean(), 'early number': lambda x: [x.max(), F.relu(x)][1] + x.mean(),
    'pooling': lambda x: F.relu(F.max_pool2d(x, 2)), 'none': lambda x: x, 'product': lambda x: 2. * x,
    'bound': lambda x: torch.ones_like(x).clamp(min=x), 'in a list': lambda x: torch.cat([F.relu(x), x]).chunk(2)[0],
    'write': lambda x: [x.__setitem__((slice(None), 0), 1.), F.relu(x)][1],
}


def expected_at(model, function=None):
    '''The output, and gradient and activation at the convolution's output, or behind a function of it.'''
    read = model.conv(model.before(IMAGE))
    read = (read if function is None else function(read)).detach().requires_grad_()
    output = model.head((model.function(read.clone()) if function is None else read).mean((2, 3)))
    return torch.autograd.grad(output[[0, 1], TARGETS].sum(), read)[0], read.detach()


@pytest.mark.parametrize('name', FUNCTIONS)
def test_read_after(name):
    model = Direct(FUNCTIONS[name])
    output, gradient, activation = gradient_at(model, 'conv', IMAGE, class_relevance(TARGETS))
    assert torch.equal(output, model(IMAGE))
    found = {each.name: each.activation for each in layers(classifier_of(model.float()))}
    model.double()
    assert found['before'] is None and found['conv']
    for one, other in zip((gradient, activation), expected_at(model, FUNCTIONS[name])):
        assert_close(one, other)


LINEAR_PIECES = (
    'after reading a number', 'before reading numbers', 'relu', 'relu_', 'in place', 'method',
    'method in place', 'by keyword', 'clamp', 'clip_', 'in a checkpoint',
    'Hardtanh', 'LeakyReLU', 'PReLU', 'ReLU', 'ReLU6', 'RReLU', 'Softshrink', 'Hardsigmoid',
)


@pytest.mark.parametrize('name', [
    *LINEAR_PIECES, 'number', 'early number', 'sum', 'two', 'twice', 'view', 'pooling', 'none', 'product', 'write',
])
def test_split_maps_are_read_where_those_of_peers_are(name):
    '''Half of the gradient, and of its product with the activation, for a shift of one half.'''
    model = Direct({**FUNCTIONS, **OTHER_USES}[name])
    _, gradient, activation = gradient_at(model, 'conv', IMAGE, class_relevance(TARGETS))
    for composite, expected in (
        (SplitGrad(.5, layer='conv'), gradient.mean(1)), (SplitCAM('conv', .5), (gradient * activation).sum(1)),
    ):
        for _ in range(2):  # as the second time it is known that there are several uses
            output, _ = Gradient(model, composite)(IMAGE, class_relevance(TARGETS))
            assert torch.equal(output, model(IMAGE))
            assert_close(composite.saliency, expected / 2)


@pytest.mark.parametrize('composite', [
    SplitLRP(stream='positive', layer='norm1'), SplitLRP(layer='norm3'), SplitCAM('norm1', stream='+g'),
    SplitCAM('norm2'), SplitGrad(layer='second'),
], ids=lambda composite: f'{type(composite).__name__} {composite.canonizers[-1].layer}')
def test_split_maps_of_modules_and_functions(composite):
    maps = []
    for kind in KINDS:
        Gradient(Net(kind), composite)(IMAGE, class_relevance(TARGETS))
        maps.append(composite.saliency)
    for map in maps[1:]:
        assert_close(map, maps[0])


@pytest.mark.parametrize('name', ['after reading a number', 'before reading numbers'])
def test_numbers_are_read_in_one_pass(name):
    runs = []
    model = Direct(lambda x: [runs.append(x.shape), FUNCTIONS[name](x)][1])
    Gradient(model, SplitGrad(.5, layer='conv'))(IMAGE, class_relevance(TARGETS))
    assert len(runs) == 1


class Returning(Direct):
    '''A model whose output is a number that is made of the layer's output beside its activation.'''
    def forward(self, x):
        hidden = self.conv(self.before(x))
        largest, _ = hidden.mean(), F.relu(hidden).sum()
        return largest


def test_a_number_that_is_returned_is_a_use():
    model = Returning(None)
    output, gradient, _ = gradient_at(model, 'conv', IMAGE, torch.ones_like)
    assert_close(gradient, torch.full_like(gradient, 1 / gradient.numel()))
    composite = SplitGrad(.5, layer='conv')
    assert torch.equal(Gradient(model, composite, attr_output=torch.ones_like)(IMAGE)[0], output)
    assert_close(composite.saliency, gradient.mean(1) / 2)


def test_a_number_is_read_after_the_model_and_nothing_else_is_made_of_it():
    class Keeping(Direct):
        def forward(self, x):
            hidden = self.conv(self.before(x))
            self.largest = hidden.max()
            return F.relu(hidden).flatten(1)

    with SplitGrad(.5, layer='conv').context(model := Keeping(None)):
        model(IMAGE.clone().requires_grad_())
        assert float(model.largest * 2.) == 2. * float(model.largest)
        with pytest.raises(NotImplementedError, match=r'a number that was read.*item\(\)'):
            assert model.largest.difference


def test_asking_is_no_use_and_a_second_use_starts_over():
    runs = []

    def asking(x):
        runs.append(x.shape)
        if (x > 0).any() and x.dim() == 4 and float((x > 0).sum()) > 0.:
            x = F.relu(x)
        return x

    composite, model = SplitCAM('conv', .5), Direct(asking)
    Gradient(model, composite)(IMAGE, class_relevance(TARGETS))
    expected, read = expected_at(Direct(F.relu), F.relu)
    assert_close(composite.saliency, (expected * read).sum(1) / 2)
    assert len(runs) == 1
    for count in (2, 3):  # the passes of the first call, and of all that follow
        model.function = lambda x: [runs.append(x.shape), F.relu(x) + x][1]
        runs.clear()
        Gradient(model, composite)(IMAGE, class_relevance(TARGETS))
        assert len(runs) == 2 - (count > 2)


@pytest.mark.parametrize('relu', [F.relu, F.relu_])
def test_written_to_after_the_activation(relu):
    model = Direct(lambda x: relu(x).mul_(2.).add_(1.))
    _, gradient, activation = gradient_at(model, 'conv', IMAGE, class_relevance(TARGETS))
    expected, read = expected_at(model, F.relu)
    assert torch.equal(activation, read)
    assert_close(gradient, 2. * expected)


@pytest.mark.parametrize('name', OTHER_USES)
def test_read_at_the_output_itself(name):
    model = Direct(OTHER_USES[name])
    output, gradient, activation = gradient_at(model, 'conv', IMAGE, class_relevance(TARGETS))
    assert torch.equal(output, model(IMAGE))
    assert not any(each.activation for each in layers(classifier_of(model.float())))
    for one, other in zip((gradient, activation), expected_at(model.double())):
        assert_close(one, other)


def test_hooks_are_no_use():
    '''Neither what hooks of either module do, nor the tensors that backward hooks make.'''
    seen, model = [], Net('module')
    expected = gradient_at(model, 'norm1', IMAGE, class_relevance(TARGETS))
    model.norm1.register_forward_hook(lambda module, args, output: seen.append(output.abs().max()))
    model.norm1.register_forward_hook(lambda module, args, output: output.clone())
    model.act1.register_forward_pre_hook(lambda module, args: (args[0].view_as(args[0]).clone(),))
    model.act1.register_forward_hook(lambda module, args, output: seen.append((args[0] + output).sum()))
    model.act1.register_full_backward_hook(lambda module, *gradients: seen.extend(gradients))
    model.norm1.register_full_backward_hook(lambda module, *gradients: seen.extend(gradients))
    for one, other in zip(gradient_at(model, 'norm1', IMAGE, class_relevance(TARGETS)), expected):
        assert_close(one, other)
    assert len(seen) == 2  # the backward pass ends between the two modules
    assert [each.activation for each in layers(classifier_of(model.float())) if each.name == 'norm1'] == ['relu']


@pytest.mark.parametrize('kind', KINDS[:2])
def test_relevance_under_a_composite(kind):
    '''Zennit wraps what enters a module, and gives an activation's relevance to its input.'''
    model, found = Net(kind), []
    for layer in ('norm1', 'act1', 'second'):
        with EpsilonPlus().context(model):
            found.append(gradient_at(model, layer, IMAGE, class_relevance(TARGETS)))
    for one, other in zip(found[0], found[1]):
        assert torch.equal(one, other)
    assert (found[0][2] >= 0.).all() and (found[2][2] < 0.).any()


def test_recorded_is_what_follows_sees():
    model = Net('function in place')
    for layer, function in (('norm1', F.relu), ('second', lambda x: x)):
        with recorded(model, layer) as outputs:
            model(IMAGE)
        with torch.no_grad():
            expected = function(nn.Sequential(model.first, model.norm1)(IMAGE))
            expected = expected if layer == 'norm1' else model.second(F.relu(expected))
        assert len(outputs) == 1 and torch.equal(outputs[0], expected)


# the last feature map

TORCHVISION = {
    'alexnet': 'features.11', 'vgg16': 'features.29', 'squeezenet1_1': 'classifier.2',
    'resnet18': 'layer4.1', 'resnet50': 'layer4.2', 'densenet121': 'features.norm5 (after relu)',
    'efficientnet_b0': 'features.8', 'mobilenet_v2': 'features.18', 'mobilenet_v3_small': 'features.12',
    'mnasnet0_5': 'layers.16', 'shufflenet_v2_x0_5': 'conv5.2', 'googlenet': 'inception5b',
    'inception_v3': 'Mixed_7c', 'convnext_tiny': 'features.7.2', 'swin_t': 'norm',
    'regnet_y_400mf': 'trunk_output.block4',
}


@pytest.mark.parametrize('name', TORCHVISION)
def test_last_feature_map_of_torchvision(name):
    torch.manual_seed(0)
    options = {'init_weights': False} if name in ('googlenet', 'inception_v3') else {}
    model = torchvision.models.get_model(name, weights=None, **options).eval()
    layer, is_last = last_feature_map(classifier_of(model, 128 if name == 'inception_v3' else 64))
    assert layer.place == TORCHVISION[name] and is_last and min(layer.shape[1:]) > 1


MIDDLE = {
    'resnet18': 'layer3.1', 'densenet121': 'features.denseblock3', 'efficientnet_b0': 'features.5.2',
    'mobilenet_v2': 'features.13', 'squeezenet1_1': 'features.7', 'googlenet': 'inception4e',
    'shufflenet_v2_x0_5': 'stage3.7', 'convnext_tiny': 'features.5.8', 'swin_t': 'features.5.5',
}


@pytest.mark.parametrize('name', MIDDLE)
def test_middle_feature_map_of_torchvision(name):
    torch.manual_seed(0)
    options = {'init_weights': False} if name == 'googlenet' else {}
    classifier = classifier_of(torchvision.models.get_model(name, weights=None, **options).eval(), 96)
    layer, last = middle_feature_map(classifier), last_feature_map(classifier)[0]
    assert layer.place == MIDDLE[name]
    assert all(1.5 * side <= own <= 3 * side for side, own in zip(last.shape[1:], layer.shape[1:]))


class Tupled(nn.Module):
    '''A block that returns its output among other values.'''
    def __init__(self, model, *others):
        super().__init__()
        self.model, self.others = model, others

    def forward(self, x):
        return (self.model(x), *(each(x) if callable(each) else each for each in self.others))


class Unpacking(nn.Module):
    '''A network that takes the first of the values that its block returns.'''
    def __init__(self, block):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.block, self.last = nn.Conv2d(3, 4, 3, padding=1), block, nn.Conv2d(4, 4, 1)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        x, *_ = self.block(self.first(x))
        return self.head(self.last(F.max_pool2d(x, 2)).relu().mean((2, 3)))


class Branches(nn.Module):
    '''Two layers side by side.'''
    def __init__(self, *_):
        super().__init__()
        self.one, self.two = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)

    def forward(self, x):
        return self.one(x) + self.two(x)


@pytest.mark.parametrize('others, inside, name', [
    ((), nn.Conv2d, 'block'),  # a tuple of one tensor is as good as a tensor
    (((7, 7), None, torch.arange(3)), nn.Conv2d, 'block'),  # sizes and indices are none
    ((torch.ones_like,), nn.Conv2d, 'block'),  # nor are constants
    ((torch.sin,), nn.Conv2d, 'block.model'),  # of two, nobody knows which one is meant, but what is within is alone
    ((torch.sin,), Branches, 'block.model'),
])
def test_middle_feature_map_of_blocks_with_several_values(others, inside, name):
    classifier = classifier_of(Unpacking(Tupled(inside(4, 4, 1), *others)).eval())
    layer = middle_feature_map(classifier)
    assert layer.name == name and layer.shape == (4, 16, 16)
    assert layer in layers(classifier) or torch.ones_like in others  # which are not known without gradients
    output, saliency = saliency_map(attributor('splitlrp', classifier, layer=name), random_image(1, 3, 16, 16).float())
    assert output.shape == (1, 3) and saliency.shape == (1, 16, 16) and saliency.abs().max() > 0


class SeveralOfBranches(Branches):
    '''Two layers side by side, of which no module returns the sum alone.'''
    def forward(self, x):
        return super().forward(x), x.sin()


def test_a_branch_is_no_middle_feature_map():
    assert middle_feature_map(classifier_of(Unpacking(SeveralOfBranches()).eval())).name == 'first'


@pytest.mark.parametrize('name', ['Swin', 'Swinv2'])
def test_middle_feature_map_of_transformers(name):
    '''It is what the third stage ends in, as in torchvision's and timm's Swin, though it returns several values.'''
    transformers = pytest.importorskip('transformers')
    torch.manual_seed(0)
    config = getattr(transformers, f'{name}Config')(
        image_size=64, patch_size=2, embed_dim=8, depths=[1, 1, 2, 1], num_heads=[1, 1, 2, 2], window_size=4,
        num_labels=3
    )
    model = getattr(transformers, f'{name}ForImageClassification')(config).eval()
    layer = middle_feature_map(classifier_of(Logits(model), 64))
    assert layer.name == f'{name.lower()}.encoder.layers.2.blocks.1' and layer.shape == (32, 8, 8)


def test_no_middle_feature_map_where_all_are_of_one_size():
    assert middle_feature_map(classifier_of(Net('module').float(), 16)).place == 'act2'
    model = drawn(torchvision.models.VisionTransformer(32, 8, 2, 2, 16, 32, num_classes=4))
    assert middle_feature_map(classifier_of(model, 32)) is None


def test_last_feature_map_of_a_class_token():
    '''After the last attention the output depends on the class token alone.'''
    torch.manual_seed(0)
    model = drawn(torchvision.models.VisionTransformer(32, 8, 2, 2, 16, 32, num_classes=4))
    layer, is_last = last_feature_map(classifier_of(model, 32))
    assert layer.name == 'encoder.layers.encoder_layer_1.ln_1' and layer.shape == (16, 4, 4) and is_last


def test_last_feature_map_of_modules_and_functions():
    for kind in KINDS:
        layer, is_last = last_feature_map(classifier_of(Net(kind).float()))
        assert layer.name == ('act3' if kind.startswith('module') else 'norm3') and is_last
        model = Net(kind)
        assert torch.equal(map_at('layercam', model, layer.name), map_at('layercam', model, 'norm3'))


ENDS = {  # what makes the last feature map, or sums up its places
    'functions': (lambda model, x: F.relu(x + 1.), 'conv', False), 'sum': (lambda model, x: x + 1., 'conv', False),
    'mean': (lambda model, x: x, 'conv', True), 'pooling': (lambda model, x: F.max_pool2d(x, 2), 'conv', True),
    'dropout': (lambda model, x: model.dropout(F.relu(x)), 'conv (after relu)', True),
    'identity': (lambda model, x: model.identity(x), 'conv', True),
    'relu6': (lambda model, x: nn.ReLU6()(x), 'conv (after relu6)', True),
    'relu6 by its name': (lambda model, x: F.hardtanh(x, min_val=0., max_val=6.), 'conv (after relu6)', True),
    'hardtanh': (lambda model, x: F.hardtanh(x, max_val=6.), 'conv (after hardtanh)', True),
    'adaptive': (lambda model, x: model.pool(F.gelu(x)), 'conv (after gelu)', True),
    'score': (lambda model, x: (x.relu() * model.score(x.relu()).flatten(2).softmax(-1).unflatten(2, x.shape[2:])),
              'conv', False),
    'axes': (lambda model, x: model.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), 'norm', True),
    'windows': (lambda model, x: model.windows(x), 'windows', True),
}


class Windows(nn.Module):
    '''A layer of what has no height and width.'''
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x):
        return self.linear(x.flatten(2).mT.unflatten(1, (1, -1))).flatten(1, 2).mT.unflatten(2, x.shape[2:])


@pytest.mark.parametrize('name', ENDS)
def test_last_feature_map_of(name):
    function, place, is_last = ENDS[name]
    model = Direct(None, dropout=nn.Dropout(), identity=nn.Identity(), pool=nn.AdaptiveAvgPool2d(3),
                   score=nn.Conv2d(4, 1, 1), norm=nn.LayerNorm(4), windows=Windows()).float()
    model.function = lambda x: function(model, x)
    trained = [parameter.requires_grad for parameter in model.parameters()]
    found = last_feature_map(classifier_of(model))
    assert (found[0].place, found[1]) == (place, is_last)
    assert last_layer(classifier_of(model)) == found[0].name
    assert [parameter.requires_grad for parameter in model.parameters()] == trained
    assert not model.conv._forward_hooks and not model.conv._forward_pre_hooks


class Bypassed(nn.Module):
    '''A layer beside which its input goes on, and a function without a form that is no part of the output.'''
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.layer, self.last = nn.Conv2d(2, 6, 1), nn.Conv2d(6, 6, 1), nn.Linear(6, 3)
        self.double().eval()

    def forward(self, x):
        hidden = torch.relu(self.first(x))
        torch.sigmoid(hidden)
        return self.last(torch.relu(hidden + torch.relu(self.layer(hidden))).mean((2, 3)))


@pytest.mark.parametrize('composite', [
    lambda: SplitGrad(layer='layer'), lambda: SplitLRP(layer='layer'), lambda: SplitCAM('layer')
])
def test_true_gradients_do_not_only_go_through_the_layer(composite):
    '''Those of a loss of output and map, and those by parameters alone.'''
    model, image = Bypassed(), random_image(2, 2, 4, 4).requires_grad_()
    tensors = [image, *model.parameters()]
    seed = torch.eye(3, dtype=torch.float64)[[0, 2]]
    expected = torch.autograd.grad((model(image) * seed).sum(), tensors)
    with composite().context(model):
        map, = torch.autograd.grad(output := model(image), image, seed, create_graph=True)
        of_map = torch.autograd.grad(map.square().sum(), tensors, retain_graph=True, materialize_grads=True)
        of_both = torch.autograd.grad(map.square().sum() + (output * seed).sum(), tensors, retain_graph=True)
        alone = torch.autograd.grad((output * seed).sum(), tensors[1:])
    for whole, part, true in zip(of_both, of_map, expected):
        assert_close(whole - part, true, 1e-9)
    for found, true in zip(alone, expected[1:]):
        assert_close(found, true, 1e-12)


class Centered(nn.Module):
    '''A network with a layer norm over the channels of a layer's output, and whatever else is made of it.'''
    def __init__(self, bypass):
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.norm, self.bypass = nn.Conv2d(3, 8, 3), nn.LayerNorm(8), bypass
        self.hidden, self.head = nn.Linear(8, 8), nn.Linear(8, 4)
        drawn(self)

    def forward(self, x):
        x = self.layer(x)
        x = F.relu(self.hidden(self.norm(x.movedim(1, -1)))) + self.bypass * x.movedim(1, -1)
        return self.head(x.mean((1, 2)))


@pytest.mark.filterwarnings('ignore:canonizers')
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
@pytest.mark.parametrize('alpha', [None, .5])
def test_sensitivities_before_a_layer_norm_cancel_each_other_out(alpha, dtype):
    '''Their mean over the channels is nothing but rounding, which is no map.'''
    image, composite = IMAGE.to(dtype), SplitGrad(layer='layer', **({} if alpha is None else {'alpha': alpha}))
    with pytest.warns(UserWarning, match='nothing but rounding .* SplitGrad .* module \'layer\''):
        Gradient(Centered(0.).to(dtype), composite)(image, class_relevance(TARGETS))
    for method, bypass in ((SplitGrad, 1.), (SplitCAM, 0.), (SplitLRP, 0.)):
        with warnings.catch_warnings():
            warnings.filterwarnings('error', 'nothing but rounding')
            assert Gradient(Centered(bypass).to(dtype), method(layer='layer'))(image, class_relevance(TARGETS))[1].any()


@pytest.mark.parametrize('composite', [SplitGrad(layer='0'), SplitGrad(.5, layer='0'), SplitCAM('0')])
def test_entries_that_overflow_do_not_cancel_each_other_out(composite):
    '''The map is computed once more in float64, and scaled into the range of float32.'''
    model = nn.Sequential(nn.Conv1d(3, 4, 1), nn.ReLU(), nn.Flatten(), nn.Linear(20, 2)).requires_grad_(False)
    for layer, size in ((model[0], 1.), (model[3], 1e36)):
        nn.init.constant_(layer.weight, size)
    series = torch.ones(2, 3, 5, requires_grad=True)
    with composite.context(model), pytest.warns(UserWarning) as warned:
        torch.autograd.grad(model(series), series, torch.full((2, 2), 1e10))
    assert [warning for warning in warned if 'too large' in str(warning.message)] == list(warned)
