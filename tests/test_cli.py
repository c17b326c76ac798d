'''The command line.'''
import io
import os
import re
import resource
import subprocess
import sys
import weakref
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from click.testing import CliRunner
from commands import command, require_error, require_success, run, run_code, run_process
from helpers import assert_close, rounding
from PIL import Image
from zennit.attribution import Gradient

from zennit_dc import SplitCAM, SplitGrad, contrast
from zennit_dc.attribution import CASO, Sparsity, class_relevance
from zennit_dc.cli import main, pictures
from zennit_dc.cli.explanations import Explanations
from zennit_dc.cli.pictures import distinct, shortened
from zennit_dc.data.classifiers import layers, load_classifier
from zennit_dc.data.images import read_image
from zennit_dc.data.parts import held
from zennit_dc.data.progress import progress_bar
from zennit_dc.demo import demo_network, draw, draw_batch
from zennit_dc.figures import color


PHOTOGRAPH = Path(__file__).parents[1] / 'examples' / 'coffee.jpg'


@pytest.fixture(scope='module', name='drawings')
def fixture_drawings(tmp_path_factory):
    folder = tmp_path_factory.mktemp('drawings')
    for index in range(3):
        Image.fromarray(draw(7, index).image).save(folder / f'{index}.png')
    return sorted(folder.iterdir())


@pytest.fixture(scope='module', name='weights')
def fixture_weights(tmp_path_factory):
    path = tmp_path_factory.mktemp('weights') / 'random.pt'
    torch.manual_seed(0)
    torch.save({'state_dict': torchvision.models.squeezenet1_0(weights=None).state_dict()}, path)
    return path


@pytest.mark.slow(5)
def test_explain(tmp_path, drawings):
    '''As a user starts it.'''
    figure = tmp_path / 'figures' / 'figure.png'
    require_success(subprocess.run(command(
        'explain', *drawings, '--model', 'demo', '--layer', 'residual', '--alpha', .45, '--compare',
        '--against', 'none', '--save-arrays', '--out', figure
    ), capture_output=True, text=True, timeout=300))
    assert Image.open(figure).size[0] > 1000
    folder = figure.with_name('figure_maps')
    methods = ['Gradient', 'LRP-gamma', 'LayerCAM', 'SplitCAM', 'SplitLRP']
    overlays = [f'{method}_overlay' for method in ('LayerCAM', 'SplitCAM', 'SplitLRP')]
    assert {path.name for path in folder.iterdir()} == {
        'support.json', *(f'{index}_{each}.png' for index in range(3) for each in (*methods, *overlays)),
        *(f'{index}_{method}.npy' for index in range(3) for method in methods)
    }
    classifier = load_classifier('demo')
    input = classifier.preprocessing(Image.open(drawings[1]))[None]
    output, attribution = Gradient(classifier.model, SplitCAM('residual', .45))(input, class_relevance())
    expected = np.array(color(attribution[0].sum(0)).convert('RGB'), int)
    # the order of sums may differ, which is up to one step of 255
    assert np.abs(np.array(Image.open(folder / '1_SplitCAM.png').convert('RGB'), int) - expected).max() <= 2
    array = torch.from_numpy(np.load(folder / '1_SplitCAM.npy', allow_pickle=False))
    assert array.dtype == torch.float32
    tolerance = rounding(classifier.model, input, unit=output[0].argmax())
    assert_close(array, attribution[0].sum(0).detach(), tolerance)


def test_explain_with_nothing_but_a_photograph(tmp_path, drawings, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run('explain', drawings[0], '--model', 'demo')
    require_success(result)
    first, second, *_ = result.stdout.splitlines()
    assert first.startswith('maps of SplitLRP at layer features.9, which has about twice the resolution of the last')
    assert second.startswith('maps at layer residual, the last feature map;')
    assert {path.name for path in (tmp_path / 'explanation_maps').iterdir()} == {
        'support.json',
        *(f'0_{each}.png' for each in ('SplitCAM', 'SplitCAM_overlay', 'SplitLRP', 'SplitLRP_overlay'))
    }
    assert Image.open('explanation.png').size[0] > 600


def test_explain_several_classes_against_others(tmp_path, drawings, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'names.txt').write_text('\n'.join(f'the {index}th' for index in range(10)))
    options = ('explain', drawings[0], '--model', 'demo', '--method', 'splitgrad', '--save-arrays', '--categories',
               'names.txt')
    classifier = load_classifier('demo')
    input = classifier.preprocessing(Image.open(drawings[0]))[None]
    *likeliest, third, fourth, fifth, sixth = classifier.model(input)[0].topk(6).indices.tolist()
    require_success(run(*options, '--target', f'The_{third}th', '--target', fourth, '--top', 2, '--against',
                        f'the {fifth}th', '--against', sixth))
    for target in (third, fourth, *likeliest):
        relevance = contrast(target, [fifth, sixth])
        expected = Gradient(classifier.model, SplitGrad())(input, relevance)[1][0].sum(0).detach()
        found = torch.from_numpy(np.load(f'explanation_maps/0_{target}_SplitGrad.npy'))
        assert_close(found, expected, rounding(classifier.model, input, unit=target))
    require_success(run(*options, '--out', 'likely.png'))
    expected = Gradient(classifier.model, SplitGrad())(input, contrast(None, 'likely'))[1][0].sum(0).detach()
    found = torch.from_numpy(np.load('likely_maps/0_SplitGrad.npy'))
    assert_close(found, expected, rounding(classifier.model, input, unit=likeliest[0]))


def test_a_map_that_is_not_about_the_class_is_reported(tmp_path, drawings, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = ('explain', drawings[0], '--model', 'demo', '--method', 'splitgrad', '--against', 'none', '--no-support')
    result = run(*options, '--alpha', 0)
    require_success(result)
    line, = result.stderr.splitlines()
    assert re.match(
        r"SplitGrad at the input: '.+' has nearly the same map as '.+' \(cosine (1\.00|0\.9\d)\): without a contrast,",
        line
    )
    assert '--against' not in line and line.endswith('; try --alpha balanced')
    result = run(*options)
    require_success(result)
    assert not result.stderr


def test_two_classes_are_compared_each_by_itself(tmp_path, drawings, monkeypatch):
    '''Their contrasts differ by construction, so that these would never be reported.'''
    monkeypatch.chdir(tmp_path)
    options = ('explain', drawings[0], '--model', 'demo', '--method', 'splitgrad', '--alpha', 0, '--no-support')
    for more in ((), ('--against', 'others'), ('--top', 2)):
        result = run(*options, *more)
        require_success(result)
        line, = result.stderr.splitlines()
        assert re.search(r"by itself, '.+' has nearly the same map as '.+' \(cosine (1\.00|0\.9\d)\): what is", line)
        assert '--against' not in line and line.endswith('; try --alpha balanced')


def test_what_a_contrast_sets_apart_is_no_reason_to_leave_a_layer(tmp_path, drawings):
    result = run('explain', drawings[0], '--model', 'demo', '--method', 'splitlrp@residual', '--no-support', '--top', 2,
                 '--out', tmp_path / 'out.png')
    require_success(result)
    for line in result.stderr.splitlines():
        assert line.endswith('what is shown is what sets them apart')


def explanations_of(**options):
    classifier = load_classifier('demo')
    given = dict.fromkeys(('alpha', 'recentering', 'canonizers', 'epsilon', 'pooling', 'input_split', 'grid', 'penalty',
                           'margin', 'classes'))
    values = {'targets': (), 'top': None, 'against': ('likely',), 'asks': True, **options}
    chosen = [('splitgrad', None), ('splitcam', 'residual')]
    return Explanations(classifier, chosen, {'streams': (), **given}, 0, **values)


@pytest.mark.parametrize('options, count', [
    ({}, 2), ({'top': 3}, 6), ({'targets': ('1', '2')}, 4), ({'targets': ('predicted',), 'top': 2}, 4),
])
def test_progress_counts_maps(drawings, options, count):
    '''A class that is given, and among the likeliest, counts once.'''
    classifier = load_classifier('demo')
    input = classifier.preprocessing(Image.open(drawings[0]))[None]
    predicted = str(int(classifier.model(input).argmax()))
    options = {**options, 'targets': tuple(each.replace('predicted', predicted) for each in options.get('targets', ()))}
    explanations = explanations_of(**options)
    with progress_bar(total=explanations.most, file=io.StringIO()) as bar:
        maps = [map for *_, found in explanations.of(drawings[0], input, bar) for map in found.values()]
        assert bar.n == bar.total == count == len(maps)


@pytest.mark.parametrize('lowest, highest, said', [
    (-1., -.1, 'nothing is red'), (-1., .05, 'hardly anything is red'), (-1., 1., None), (0., 1., None),
])
def test_a_map_without_red_says_so(drawings, lowest, highest, said):
    explanations = explanations_of()
    classifier = explanations.classifier
    input = classifier.preprocessing(Image.open(drawings[0]))[None]
    map = torch.linspace(lowest, highest, input[0, 0].numel()).view_as(input[0, 0])
    found = explanations.notes(drawings[0], input, 1, '', {'SplitCAM': map}, 'bwr')['SplitCAM'].splitlines()
    assert said in (None, found[0]) and (said is None) == found[0].startswith('hiding')
    assert any(line.startswith(f'hiding the {"red" if said is None else "least blue"} fifth: ') for line in found)
    found, = explanations_of().notes(drawings[0], input, 1, '', {'SplitCAM': map}, 'gray').values()
    assert 'red' not in found


@pytest.mark.parametrize('method, against, advice', [
    ('random', 'none', None), ('random', 'likely', 'another method'),
])
def test_advice_has_the_options_of_the_method(tmp_path, drawings, method, against, advice):
    result = run('explain', drawings[0], '--model', 'demo', '--method', method, '--against', against, '--no-support',
                 '--out', tmp_path / 'out.png')
    require_success(result)
    line, = result.stderr.splitlines()
    assert line.endswith('it does not tell them apart' if advice is None else f'; try {advice}')
    assert '--alpha' not in line


def test_gradients_are_blurred_in_pictures_alone(tmp_path, drawings, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = ('explain', drawings[0], '--model', 'demo', '--method', 'gradient', '--no-support', '--save-arrays')
    require_success(run(*options, '--out', 'blurred.png'))
    require_success(run(*options, '--smoothing', 0, '--percentile', 100, '--out', 'raw.png'))
    blurred, raw = (np.load(f'{name}_maps/0_Gradient.npy') for name in ('blurred', 'raw'))
    assert np.array_equal(blurred, raw)
    expected = np.asarray(color(torch.from_numpy(raw)).convert('RGB'), int)
    assert np.abs(np.asarray(Image.open('raw_maps/0_Gradient.png').convert('RGB'), int) - expected).max() <= 2
    red, _, blue = np.asarray(Image.open('blurred_maps/0_Gradient.png').convert('RGB'), int).reshape(-1, 3).T
    assert (red >= blue - 3).all() and (red > blue + 99).any()  # the middle of a palette of 256 colors is nearly white
    require_error(run(*options, '--percentile', 0), 'percentile')


def test_explain_with_layers_streams_and_a_model_of_torchvision(tmp_path, weights, monkeypatch):
    monkeypatch.chdir(tmp_path)
    other = tmp_path / 'other' / 'coffee.jpg'
    other.parent.mkdir()
    other.write_bytes(PHOTOGRAPH.read_bytes())
    require_success(run(
        'explain', PHOTOGRAPH, other, '--weights', weights, '--method', 'splitcam@features.9', '--method',
        'splitcam@features.12', '--method', 'splitlrp@input', '--stream', '+g', '--stream', 'positive', '--target', 967,
        '--recentering', 'shifting', '--dtype', 'float64', '--no-overlay', '--no-support', '--out', 'figure.pdf'
    ))
    assert (tmp_path / 'figure.pdf').read_bytes().startswith(b'%PDF')
    assert sorted(path.name for path in (tmp_path / 'figure_maps').iterdir()) == [
        f'coffee-{index}_{method}.png'
        for index in (1, 2) for method in ('SplitCAM-features.12', 'SplitCAM-features.9', 'SplitLRP')
    ]
    for path in (tmp_path / 'figure_maps').iterdir():
        image = Image.open(path).convert('RGB')
        assert image.size == (224, 224) and len(image.getcolors(2 ** 24)) > 10


OWN = '''
import torch

def build():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.GELU(), torch.nn.Flatten(), torch.nn.Linear(2704, 5))

def broken():
    raise KeyError('weights')

def number():
    return 1

def drawn():
    last = torch.nn.Linear(6, 5)
    return torch.nn.Sequential(cnn()[:-1], last)

class Twice(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.again, self.unused = torch.nn.Conv2d(3, 3, 3), torch.nn.ReLU(), torch.nn.ReLU()
        self.last = torch.nn.Linear(3, 5)

    def forward(self, x):
        return self.last(self.again(self.first(self.again(x))).mean((2, 3)))

def twice():
    torch.manual_seed(0)
    return Twice()

class Smooth(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.last = torch.nn.Linear(3, 5)

    def forward(self, x):
        return self.last(torch.nn.functional.gelu(x).mean((2, 3)))

def smooth():
    torch.manual_seed(0)
    return Smooth()

class Both(torch.nn.Module):
    def forward(self, x):
        return x.mean((2, 3)), x

class Tokens(torch.nn.Module):
    def forward(self, x):
        return x.flatten(2).mT

class Last(torch.nn.Module):
    def forward(self, x):
        return x[:, -33:]

def cnn(channels=3, classes=5):
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Conv2d(channels, 6, 3), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(),
        torch.nn.Linear(6, classes)
    )

def one():
    return cnn(classes=1)

def gray():
    return cnn(channels=1)

def dense():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(28 * 28, 5))

def four():
    return cnn(channels=4)

class Counting(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.cnn = cnn()

    def forward(self, x):
        if x.shape[1] != 3:
            raise ValueError('it takes three channels')
        scores = self.cnn(x)
        return scores, scores.mean()

def tokens():
    torch.manual_seed(0)
    patches = torch.nn.Conv2d(1, 4, 4, 4)
    return torch.nn.Sequential(patches, Tokens(), Last(), torch.nn.Flatten(), torch.nn.Linear(132, 5))
'''


@pytest.fixture(name='own')
def fixture_own(tmp_path, monkeypatch):
    '''The working directory, with a module whose functions return models.'''
    (tmp_path / 'own.py').write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, 'own', raising=False)
    return tmp_path


def test_a_model_of_ones_own(own, drawings, monkeypatch):
    monkeypatch.syspath_prepend(own)
    model = ('own:build', '--size', 28, '--mean', 0.5, '--std', 0.5)
    options = ('explain', drawings[0], '--model', *model, '--layer', '1', '--method', 'splitcam')
    require_error(run(*options, '--canonizer', 'none'), 'gelu', '--canonizer activations')
    require_error(run(*options, '--canonizer', 'auto', '--canonizer', 'smooth'), 'auto can be given with no other')
    require_success(run(*options, '--canonizer', 'smooth'))
    automatic = run(*options, '--method', 'splitgrad')
    require_success(automatic)
    said = 'zennit-dc: warning: canonizers=\'auto\' takes DetachedActivations() for gelu in'
    assert automatic.stderr.count(said) == 1  # though both methods do
    assert Image.open(own / 'explanation_maps' / '0_SplitCAM.png').size == (28, 28)
    require_error(run('layers', 'own:broken'), 'own:broken', 'KeyError', 'weights')
    require_error(run('layers', 'own:number'), 'own:number', 'int')
    require_error(run('layers', 'nowhere:build'), 'nowhere')
    both = ('explain', drawings[0], '--model', 'own:Both', '--size', 28, '--method', 'gradient')
    require_error(run(*both), 'tuple', '--output 0')
    require_success(run(*both, '--output', '0', '--input', 'x'))
    require_error(run(*both, '--output', 'scores'), 'no tensor \'scores\'')


@pytest.fixture(name='explains')
def fixture_explains(own, drawings, monkeypatch):
    '''A function that explains a drawing by the gradient of a model of the module.'''
    monkeypatch.syspath_prepend(own)
    return lambda model, *more: run(
        'explain', drawings[0], '--model', f'own:{model}', '--size', 28, '--method', 'gradient', '--save-arrays', *more
    )


def test_a_layer_that_is_not_called_once_is_refused_before_the_first_map(own, drawings, monkeypatch):
    monkeypatch.syspath_prepend(own)
    for layer, message in (('again', 'called 2 times'), ('unused', 'not called'), ('frist', "did you mean 'first'")):
        for start in (
            ('explain', drawings[0], '--method', 'gradient', '--method', 'layercam'),
            ('attribute', drawings[0].parent, '--method', 'layercam', '--out', 'out.h5'),
        ):
            require_error(run(*start, '--model', 'own:twice', '--size', 28, '--layer', layer), layer, message)
    assert not (own / 'explanation_maps').exists() and not (own / 'out.h5').exists()


def test_the_other_maps_are_kept_where_a_method_fails(own, drawings, monkeypatch):
    monkeypatch.syspath_prepend(own)
    options = ('explain', *drawings[:2], '--model', 'own:smooth', '--size', 28, '--canonizer', 'none', '--no-support')
    result = run(*options, '--method', 'splitgrad', '--method', 'gradient', '--save-arrays')
    assert result.returncode == 1
    *_, line = result.stderr.splitlines()
    assert line.startswith('zennit-dc: error: 0.png, SplitGrad at the input: ')
    assert 'gelu' in line and '(2 failed)' in line
    assert '2 maps in explanation_maps' in result.stdout and Image.open('explanation.png').size[0] > 600
    assert {path.name for path in (own / 'explanation_maps').glob('*.npy')} == {'0_Gradient.npy', '1_Gradient.npy'}
    (own / 'explanation.png').unlink()
    require_error(run(*options, '--method', 'splitgrad'), 'gelu')
    assert not (own / 'explanation.png').exists()


def test_a_model_of_ones_own_is_told_how_it_is_fed(explains, own):
    said = (
        'own:cnn: weights as the function returns them, random ones if it loads none (--weights); images resized to 28'
        ' and cropped to 28 pixels (--size), normalized by mean 0.485,0.456,0.406 (--mean)'
    )
    line, *_ = explains('cnn').stdout.splitlines()
    assert line.startswith(said) and line.endswith('classes have numbers, as no --categories FILE names them')
    (own / 'names.txt').write_text('\n'.join('abcde'))
    line, *_ = explains('cnn', '--mean', '.5', '--std', '.25', '--categories', 'names.txt').stdout.splitlines()
    assert 'by mean 0.5,0.5,0.5 (--mean) and standard deviation 0.25,0.25,0.25 (--std); names of --categories' in line


def test_random_weights_are_warned_of(explains):
    result = explains('drawn', '--weights', 'random')
    require_success(result)
    assert 'zennit-dc: warning: the weights of own:drawn are random' in result.stderr
    assert 'own:drawn: weights random (--weights); images' in result.stdout


def test_weights_of_a_file_are_not_random(explains, own):
    torch.save({f'{module}.{name}': torch.ones(shape) for module, name, shape in (
        ('0.0', 'weight', (6, 3, 3, 3)), ('0.0', 'bias', (6,)), ('1', 'weight', (5, 6)), ('1', 'bias', (5,))
    )}, own / 'best.pt')
    result = explains('drawn', '--weights', 'best.pt')
    require_success(result)
    assert 'own:drawn: weights of best.pt (--weights); images' in result.stdout and 'random' not in result.stderr


def test_random_weights_are_drawn_by_the_seed(explains, own):
    maps = []
    for seed in (0, 0, 1):
        require_success(explains('drawn', '--weights', 'random', '--seed', seed))
        maps.append(np.load(own / 'explanation_maps' / '0_Gradient.npy'))
    assert np.array_equal(maps[0], maps[1]) and not np.array_equal(maps[0], maps[2])


@pytest.mark.parametrize('model', ['demo', 'squeezenet1_1'])
def test_a_figure_says_that_weights_are_random(own, drawings, model, monkeypatch):
    headings = []
    monkeypatch.setattr('zennit_dc.cli.pictures.side_by_side', lambda rows, heading, *_: headings.append(heading))
    monkeypatch.setattr('zennit_dc.cli.pictures.save', lambda *_: None)
    result = run('explain', drawings[0], '--model', model, '--method', 'gradient', '--weights', 'random', '--size', 64)
    require_success(result)
    assert headings[0].startswith(f'{model} with random weights, ') and 'are random' in result.stderr


def test_one_number_is_for_all_channels(explains, own):
    maps = []
    for mean, std in (('.5', '.25'), ('.5,.5,.5', '.25,.25,.25'), ('.5', '.25,.25,.25'), ('.5,.5,.5', '.25')):
        require_success(explains('cnn', '--mean', mean, '--std', std))
        maps.append(np.load(own / 'explanation_maps' / '0_Gradient.npy'))
    assert maps[0].any() and all(np.array_equal(maps[0], each) for each in maps)
    require_success(explains('cnn', '--mean', '.4'))
    for model in ('gray', 'dense'):
        require_success(explains(model, '--mean', '.5', '--std', '.25'))
    require_success(explains('Counting', '--mean', '.5', '--std', '.25'))


@pytest.mark.parametrize('model', ['gray', 'dense'])
def test_a_model_of_gray_images_says_what_to_pass(explains, model):
    for more in ((), ('--mean', '.5'), ('--mean', '.5,.4,.3', '--std', '.5')):
        require_error(explains(model, *more), 'takes 1 channel, but images have 3', '--mean .5 --std .5')
    require_error(run('layers', f'own:{model}', '--size', 28), 'takes 1 channel, but images have 3')


def test_a_model_of_other_channels_says_so(explains):
    require_error(explains('four'), 'takes 4 channels, but images have 3', 'images have one or three')


def test_errors_of_something_else_are_not_of_channels(explains):
    require_error(explains('dense', '--size', 32, '--mean', .5, '--std', .5), '1024')
    require_error(explains('cnn', '--target', 5), 'no class 5')


def test_a_model_with_one_class(explains, own):
    result = explains('one')
    require_success(result)
    assert result.stdout.splitlines()[0].endswith('explained by itself, as with --against none')
    expected = np.load(own / 'explanation_maps' / '0_Gradient.npy')
    result = explains('one', '--against', 'none')
    require_success(result)
    assert '--against' not in result.stdout
    assert expected.any() and np.array_equal(np.load(own / 'explanation_maps' / '0_Gradient.npy'), expected)
    for against in ('likely', 'others'):
        require_error(explains('one', '--against', against), 'one class', 'give --against none')


def test_scores_beside_a_scalar(explains):
    require_success(explains('Counting'))


@pytest.mark.parametrize('command', [
    ('explain', 'in.png', '--method', 'gradient'), ('attribute', 'images', '--method', 'gradient')
], ids=lambda command: command[0])
def test_there_are_as_many_names_as_classes(own, drawings, monkeypatch, command):
    monkeypatch.syspath_prepend(own)
    (own / 'images').mkdir()
    for path in (own / 'in.png', own / 'images' / 'in.png'):
        path.write_bytes(drawings[0].read_bytes())
    for count in (3, 7):
        (own / 'names.txt').write_text('\n'.join(f'name {index}' for index in range(count)))
        require_error(
            run(*command, '--model', 'own:cnn', '--size', 28, '--categories', 'names.txt'),
            f'names.txt has the names of {count} classes, but the model has 5'
        )


def test_names_the_other_way_round(explains, own):
    (own / 'names.json').write_text('{"dog": 1, "cat": 0, "bird": 2, "fish": 3, "horse": 4}')
    require_success(explains('cnn', '--categories', 'names.json', '--target', 'dog', '--target', '0'))
    assert {path.name for path in (own / 'explanation_maps').glob('*.npy')} == {'0_0_Gradient.npy', '0_1_Gradient.npy'}


@pytest.mark.parametrize('given, lines, chosen', [
    (('--target', '3', '--target', '0'), ["--target 3: the class named '3', whose index is 2",
                                          "--target 0: the class of index 0, named '1'"], {0, 2}),
    (('--target', 'index:3', '--against', '5'), ["--target index:3: the class of index 3, named '4'",
                                                 "--against 5: the class named '5', whose index is 4"], {None}),
])
def test_a_name_that_is_a_number_goes_before_an_index(explains, own, given, lines, chosen):
    (own / 'names.txt').write_text('\n'.join(map(str, range(1, 6))))
    result = explains('cnn', '--categories', 'names.txt', *given)
    require_success(result)
    assert result.stdout.splitlines()[1:3] == lines
    assert {path.name for path in (own / 'explanation_maps').glob('*.npy')} == {
        '0_Gradient.npy' if index is None else f'0_{index}_Gradient.npy' for index in chosen
    }


def test_images_of_a_folder(tmp_path, drawings, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / 'folder'
    (folder / 'within').mkdir(parents=True)
    options = ('--model', 'demo', '--method', 'gradient', '--out', 'out.png')
    require_error(run('explain', 'folder', *options), 'there is no image in the folder folder')
    for name in ('b.png', 'a.png', '.c.png', 'within/d.png'):
        (folder / name).write_bytes(drawings[0].read_bytes())
    (folder / 'e.txt').touch()
    require_error(run('explain', 'folder', 'folder/a.png', *options), 'IMAGE folder/a.png was given twice')
    require_error(run('explain', 'folder', *options[:-1], 'folder/a.png'), 'overwrite the input')
    assert not (tmp_path / 'out_maps').exists()
    result = run('explain', 'folder', drawings[1], *options)
    require_success(result)
    assert '3 maps' in result.stdout
    names = sorted(path.name for path in (tmp_path / 'out_maps').iterdir())
    assert names == ['1_Gradient.png', 'a_Gradient.png', 'b_Gradient.png', 'support.json']


def test_twelve_bits_are_said(tmp_path, monkeypatch):
    monkeypatch.setattr('zennit_dc.data.images.TOLD', set())
    values = np.linspace(0, 4095, 64 * 64).reshape(64, 64).astype(np.uint16)
    Image.fromarray(values).save(tmp_path / 'x.png')
    result = run('explain', tmp_path / 'x.png', '--model', 'demo', '--method', 'gradient', '--out', tmp_path / 'y.png')
    require_success(result)
    assert 'x.png has no value above 4095, and is read as an image of 12 bits' in result.stderr


def test_layers_of_tokens(own, drawings, monkeypatch):
    monkeypatch.syspath_prepend(own)
    model = ('--size', 28, '--mean', 0.5, '--std', 0.5)
    listed = run('layers', 'own:tokens', *model)
    assert [line.split()[:6] for line in listed.stdout.splitlines()[1:]] == [
        ['0', '4', '×', '7', '×', '7'], ['1', '4', '×', '7', '×', '7']
    ]
    options = ('explain', drawings[0], '--model', 'own:tokens', *model, '--save-arrays')
    for method in ('splitcam', 'layercam'):
        options += ('--method', f'{method}@2')
    require_error(run(*options), r'grid=(height, width)', '--grid 14x14')
    require_error(run(*options, '--grid', '4'), '14x14')
    require_success(run(*options, '--grid', '4x8'))
    assert np.load(own / 'explanation_maps' / '0_SplitCAM.npy').any()
    require_error(run(*options[:-4], '--method', 'gradient', '--grid', '4x8'), 'no --grid')


def test_layers_of_a_model_in_the_working_directory(own):
    listed = run_process('layers', 'own:build', '--size', 28, '--mean', .5, '--std', .5)
    assert [line.split() for line in listed.stdout.splitlines()[1:]] == [
        ['0', '4', '×', '26', '×', '26', 'Conv2d,', 'read', 'after', 'gelu'], ['1', '4', '×', '26', '×', '26', 'GELU']
    ]
    code = (
        f'import sys; sys.path.remove({str(own)!r}); from zennit_dc.cli import main; main(["layers", "own:number"])'
    )
    require_error(run_code(code), 'own:number returns a int')


def test_every_listed_layer_has_a_map():
    classifier = load_classifier('demo')
    input = torch.randn(1, 3, 64, 64)
    found = layers(classifier)
    assert [name for name, *_ in found][-2:] == ['residual', 'pool']
    for name, _, shape, _ in found:
        composite = SplitCAM(name)
        Gradient(classifier.model, composite)(input, class_relevance())
        assert composite.saliency.shape == (1, *shape[1:])


@pytest.mark.parametrize('name', [
    'demo', 'explain', 'layers', 'attribute', 'analyze', 'project', 'evaluate'
])
def test_help_shows_an_example(name):
    result = run(name, '--help')
    require_success(result)
    description = result.stdout.partition('Usage: ')[2].partition('\n')[2].partition('Options:')[0]
    assert f'zennit-dc {name}' in description


def test_help_and_version():
    assert 'attribute' in run('--help').stdout
    assert re.match(r'zennit-dc, version \d+\.\d+\S*\n', run('--version').stdout)
    require_error(run('expalin'), 'expalin')
    require_error(run('explain', 'missing.png', '--model', 'demo'), 'missing.png cannot be read')


@pytest.mark.parametrize('arguments, message', [
    (['missing.png'], 'missing.png cannot be read as an image'),
    (['text.png'], 'text.png cannot be read as an image'),
    (['truncated.png'], 'truncated.png cannot be read as an image'),
    ([], 'IMAGE|FOLDER...\'. zennit-dc explain --help says'),
    (['0.png', '--model', 'perceptron'], 'perceptron'),
    (['0.png', '--weights', 'missing.pt'], 'missing.pt'),
    (['0.png', '--weights', 'text.png'], 'text.png cannot be loaded'),
    (['0.png', '--model', 'squeezenet1_0', '--weights', 'demo.pt'], 'cannot be loaded into squeezenet1_0'),
    (['0.png', '--layer', 'features.99'], 'features.99'),
    (['0.png', '--layer', 'classifier'], 'classifier'),
    (['0.png', '--method', 'perceptron'], 'perceptron'),
    (['0.png', '0.png'], 'IMAGE 0.png was given twice'),
    (['0.png', '--target', '1', '--target', 'striped_ring', '--target', '1'], '--target 1 was given twice'),
    (['0.png', '--method', 'splitcam', '--method', 'splitcam'], '--method splitcam was given twice'),
    (['0.png', '--target', 'striped dsk'], 'did you mean'),
    (['0.png', '--target', 'xyz'], 'there is no class named \'xyz\''),
    (['0.png', '--top', '11'], 'the model has 10 classes'),
    (['0.png', '--against', 'others', '--against', 'likely'], 'no class named \'others\''),
    (['0.png', '--target', '1', '--against', '1'], 'against itself'),
    (['0.png', '--categories', 'missing.txt'], 'missing.txt cannot be read'),
    (['0.png', '--method', 'gradient@residual'], 'Gradient is computed at the input'),
    (['0.png', '--method', 'gradient', '--alpha', '0.3'], 'Gradient has no --alpha'),
    (['0.png', '--method', 'gradient', '--layer', 'residual'], 'Gradient has no --layer'),
    (['0.png', '--method', 'gradient', '--method', 'splitgrad@input', '--layer', 'residual'], 'belongs to none'),
    (['0.png', '--method', 'splitlrp', '--stream', 'g'], 'SplitLRP has no --stream g'),
    (['0.png', '--method', 'splitgrad', '--stream', 'g', '--stream', 'h'], 'one --stream'),
    (['0.png', '--method', 'splitgrad', '--alpha', '0.7'], 'alpha'),
    (['0.png', '--method', 'splitgrad', '--alpha', 'balanced:x'], 'neither a number nor balanced:KAPPA'),
    (['0.png', '--method', 'splitgrad', '--target', '10'], 'no class 10'),
    (['0.png', '--method', 'splitgrad', '--target', '-1'], 'no class -1'),
    (['0.png', '--method', 'splitgrad', '--target', '9' * 30], 'no class 999'),
    (['0.png', '--method', 'splitcan'], 'did you mean \'splitcam\''),
    (['0.png', '--layer', 'residul'], 'did you mean \'residual\''),
    (['https://example.org/0.png'], 'https://example.org/0.png is a URL: download it first'),
    (['0.png', '--device', 'abacus'], 'abacus'),
    (['0.png', '--dtype', 'int8'], 'int8'),
    (['0.png', '--out', 'figure.txt'], 'figure.txt'),
    (['0.png', '--output', 'top2.png'], '--out top2.png'),
    (['0.png', '--mean', '1,2,x'], '1,2,x'),
    (['0.png', '--mean', '0.1,0.2'], 'channels'),
])
def test_explain_with_bad_arguments(tmp_path, drawings, arguments, message, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / '0.png').write_bytes(drawings[0].read_bytes())
    (tmp_path / 'truncated.png').write_bytes(drawings[0].read_bytes()[:2000])
    (tmp_path / 'text.png').write_text('no image')
    torch.save(demo_network().state_dict(), tmp_path / 'demo.pt')
    model = () if '--model' in arguments else ('--model', 'demo')
    require_error(run('explain', *model, *arguments), message)
    assert not (tmp_path / 'explanation.png').exists()


def test_all_images_that_cannot_be_read_are_named(tmp_path, drawings, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'good.png').write_bytes(drawings[0].read_bytes())
    for name in ('a.png', 'b.png', 'z.png'):
        (tmp_path / name).write_text('no image')
    require_error(run('explain', '.', '--model', 'demo'), 'a.png cannot be read as an image', '; nor can b.png, z.png')


def test_images_are_not_kept_in_their_own_size(tmp_path, drawings, monkeypatch):
    found = []

    def read(*args):
        assert all(image() is None for image in found)
        found.append(weakref.ref(image := read_image(*args)))
        return image

    monkeypatch.setattr(pictures, 'read_image', read)
    options = ('--model', 'demo', '--no-support', '--method', 'splitcam', '--out', tmp_path / 'x.png')
    require_success(run('explain', *drawings, *options))
    assert len(found) == len(drawings)


def test_a_figure_with_many_rows_is_continued(tmp_path, drawings, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pictures, 'LENGTH', 2)
    options = ('--model', 'demo', '--no-support', '--method', 'splitcam')
    result = run('explain', *drawings, *options, '--top', 2, '--out', 'many.png')
    require_success(result)
    assert 'many.png and 6 maps, and 2 more figures in many_maps' in result.stdout
    sizes = {Image.open(path).size for path in (Path('many.png'), *Path('many_maps').glob('many_*.png'))}
    assert [path.name for path in sorted(Path('many_maps').glob('many_*'))] == ['many_2.png', 'many_3.png']
    require_success(run('explain', drawings[0], *options, '--out', 'one.png'))
    require_success(run('explain', *drawings[:2], *options, '--top', 2, '--out', 'many.png'))
    assert [path.name for path in Path('many_maps').glob('many_*')] == ['many_2.png']
    assert all(size[1] > 1.5 * Image.open('one.png').size[1] for size in sizes)


def test_errors_have_a_traceback_if_asked(drawings, monkeypatch):
    arguments = ['explain', str(drawings[0]), '--model', 'nowhere:build']
    for variable, kind in (('', SystemExit), ('1', ValueError)):
        monkeypatch.setenv('ZENNIT_DC_TRACEBACK', variable)
        assert type(CliRunner().invoke(main, arguments).exception) is kind


def test_functions_that_are_not_found(tmp_path, drawings, monkeypatch):
    monkeypatch.chdir(tmp_path)
    require_error(run('explain', drawings[0], '--model', 'nowhere:build'), 'run the command in the folder of its file')
    require_error(run('explain', drawings[0], '--model', 'nowhere.py:build'), 'leave out .py')


def test_mean_of_pixels_up_to_255(tmp_path, drawings):
    options = ('--model', 'demo', '--no-support', '--method', 'splitcam', '--std', '0.25', '--out', tmp_path / 'x.png')
    assert 'divide mean and std by 255' in run('explain', drawings[0], *options, '--mean', '123.7,116.3,103.5').stderr
    assert 'a mean of -0.1,' in run('explain', drawings[0], *options, '--mean', '0.4,-0.1,0.6').stderr
    assert 'divide' not in run('explain', drawings[0], *options, '--mean', '0.4,0.5,0.6').stderr


def test_balanced_alpha(tmp_path, drawings, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, alpha in (('one', 'balanced'), ('two', 'balanced:0.1'), ('three', 'balanced:2')):
        require_success(run(
            'explain', drawings[0], '--model', 'demo', '--method', 'splitgrad', '--alpha', alpha, '--out', f'{name}.png'
        ))
    one, two, three = (Path(f'{name}_maps/0_SplitGrad.png').read_bytes() for name in ('one', 'two', 'three'))
    assert one == two != three


def test_names_of_maps_leave_room_for_endings():
    assert shortened('image 图') == 'image 图'
    assert shortened('n' * 240) == 'n' * 150
    assert shortened('图' * 80) == '图' * 50
    assert shortened('a' + '图' * 80) == 'a' + '图' * 49  # of whole characters


def test_names_of_maps_are_distinct():
    assert distinct(['a', 'b', 'a', 'a-1', 'a-3']) == ['a-1-0', 'b', 'a-3-0', 'a-1', 'a-3']


@contextmanager
def largest_file(size):
    '''A context in which no file may become larger than this, as if the disk were full.'''
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_explain_without_space_on_disk(tmp_path, drawings):
    with largest_file(4096):
        result = run(
            'explain', drawings[0], '--model', 'demo', '--method', 'splitgrad', '--out', tmp_path / 'figure.png'
        )
    require_error(result, 'too large', f'{tmp_path}/figure')
    assert not (tmp_path / 'figure.png').exists()


@pytest.mark.parametrize('out, message', [
    ('in.png', 'overwrite the input'), ('sub/../in.png', 'overwrite the input'), ('link.png', 'overwrite the input'),
    ('hard.png', 'overwrite the input'), ('sub/folder.png', 'is a folder'), ('in.png/out.png', 'is no folder'),
])
def test_inputs_and_folders_are_never_overwritten(tmp_path, drawings, monkeypatch, out, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'sub' / 'folder.png').mkdir(parents=True)
    (tmp_path / 'in.png').write_bytes(drawings[0].read_bytes())
    (tmp_path / 'link.png').symlink_to('in.png')
    os.link('in.png', 'hard.png')
    before = sorted(tmp_path.rglob('*'))
    require_error(run('explain', 'in.png', '--model', 'demo', '--method', 'gradient', '--out', out), message)
    assert (tmp_path / 'in.png').read_bytes() == drawings[0].read_bytes() and sorted(tmp_path.rglob('*')) == before


def test_maps_are_never_written_over_inputs(tmp_path, drawings):
    folder = tmp_path / 'out_maps'
    folder.mkdir()
    for name in ('a.png', 'a_Gradient.png'):
        (folder / name).write_bytes(drawings[0].read_bytes())
    require_error(run(
        'explain', *sorted(folder.iterdir()), '--model', 'demo', '--method', 'gradient', '--out', tmp_path / 'out.png'
    ), 'overwrite the input')


@pytest.mark.parametrize('command, lock', [
    (('explain', 'in.png', '--model', 'demo', '--method', 'gradient', '--out', 'out.png'), '.out.png.lock'),
    (('demo', '--images', 10, '--out', 'out'), '.out.lock'),
    (('evaluate', 'drawings', '--model', 'demo', '--method', 'gradient', '--out', 'out'), '.out.lock'),
    (('attribute', 'images', '--model', 'demo', '--method', 'gradient', '--out', 'out.h5'), 'out.h5.parts/lock'),
    (('analyze', 'in.png', '--out', 'out.h5'), '.out.h5.lock'),
    (('project', 'in.png', 'in.png', '--out', 'out.yaml'), '.out.yaml.lock'),
], ids=lambda each: each[0] if isinstance(each, tuple) else '')
def test_the_second_of_two_runs_says_that_the_first_holds_the_output(tmp_path, drawings, monkeypatch, command, lock):
    monkeypatch.chdir(tmp_path)
    if command[0] == 'attribute':  # which imports what it needs before it writes
        pytest.importorskip('h5py', reason='the extra "virelay" is not installed')
    for path in (tmp_path / 'in.png', tmp_path / 'images' / 'in.png'):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(drawings[0].read_bytes())
    out = command[command.index('--out') + 1]
    with held(out, lock):
        require_error(run(*command), f'another run (process {os.getpid()}) writes to {out}')
    assert not (tmp_path / lock).exists() and not (tmp_path / out).exists()


def test_a_killed_run_holds_nothing(tmp_path, drawings, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = 'from zennit_dc.data.parts import held; import os, signal\nwith held("out.png"): os.kill(os.getpid(), 9)'
    assert subprocess.run([sys.executable, '-c', code]).returncode == -9
    assert (tmp_path / '.out.png.lock').exists()
    require_success(run('explain', drawings[0], '--model', 'demo', '--method', 'gradient', '--out', 'out.png'))
    assert sorted(path.name for path in tmp_path.iterdir()) == ['out.png', 'out_maps']


def test_what_a_killed_run_has_started_holds_nothing(tmp_path):
    code = (
        'from zennit_dc.data.parts import held; import os, sys, time\n'
        'with held("out.png"):\n'
        '    if os.fork():\n'
        '        os.kill(os.getpid(), 9)\n'
        '    sys.stdout.write(f"{os.getpid()}\\n") and sys.stdout.flush()\n'
        '    time.sleep(60)'
    )
    process = subprocess.Popen([sys.executable, '-c', code], stdout=subprocess.PIPE, text=True, cwd=tmp_path)
    child = int(process.stdout.readline())
    try:
        assert process.wait() == -9
        with held(tmp_path / 'out.png'):
            os.kill(child, 0)  # which is still there
    finally:
        os.kill(child, 9)
    process.stdout.close()


def test_an_output_that_cannot_be_written_is_named():
    require_error(run('demo', '--out', '/proc/x'), '/proc/x cannot be written: No such file or directory')


def test_many_runs_hold_an_output_one_at_a_time(tmp_path):
    code = (
        'import sys, time; from zennit_dc.data.parts import held\n'
        'for _ in range(300):\n'
        '    try:\n'
        f'        with held({str(tmp_path / "out")!r}), open({str(tmp_path / "own")!r}, "x"):\n'
        f'            import os; os.unlink({str(tmp_path / "own")!r})\n'
        '    except ValueError: pass'
    )
    processes = [subprocess.Popen([sys.executable, '-c', code], stderr=subprocess.PIPE, text=True) for _ in range(3)]
    assert [process.communicate()[1] for process in processes] == [''] * 3
    assert not any(tmp_path.iterdir())


@pytest.mark.slow(4)
def test_demo(tmp_path):
    tables = []
    for folder, run_once in (('first', run_process), ('second', run)):
        result = run_once('demo', '--images', 20, '--seed', 3, '--out', tmp_path / folder)
        require_success(result)
        lines = result.stdout.splitlines()
        assert '20 drawings of 10 classes' in lines[0]
        for column in ('pointing game', '|map|', 'mass inside', 'ms / image', 'chance'):
            assert sum(line.startswith(f'{column}  ') for line in lines[13:]) == 1
        tables.append([re.split(r'\s{2,}', line.rstrip())[:6] for line in lines[3:13]])
        assert Image.open(tmp_path / folder / 'demo.png').size[0] > 800
    assert tables[0] == tables[1]
    scores = {(method, layer): [float(each) for each in numbers] for method, layer, _, *numbers in tables[0][:-1]}
    chance = float(tables[0][-1][2])
    assert .02 < chance < .3
    assert {method for method, _ in scores} == {
        'Gradient', 'LRP-γ', 'LayerCAM', 'SplitGrad', 'SplitCAM', 'SplitLRP'
    }
    assert all(0. <= each <= 1. for numbers in scores.values() for each in numbers)
    assert scores['SplitCAM', 'residual'][0] > 2. * chance
    images, masks, _ = draw_batch(20, 5)
    paths = sorted((tmp_path / 'first' / 'images').glob('*/*.png'), key=lambda path: path.name)
    for index, path in enumerate(paths):
        assert (np.array(Image.open(path)) == images[index]).all()
        mask = Image.open(str(path).replace('images', 'masks'))
        assert (np.array(mask) == 255 * masks[index]).all()


def test_demo_with_too_few_images(tmp_path):
    require_error(run('demo', '--images', 3, '--out', tmp_path / 'folder'), '3')
    (tmp_path / 'file').touch()
    require_error(run('demo', '--images', 10, '--out', tmp_path / 'file'), 'file')


def test_explain_the_loss(tmp_path, drawings):
    require_success(run(
        'explain', *drawings, '--model', 'demo', '--method', 'caso', '--method', 'splitgrad', '--penalty', .9,
        '--classes', 3, '--margin', .2, '--save-arrays', '--out', tmp_path / 'figure.png'
    ))
    classifier = load_classifier('demo')
    for index, drawing in enumerate(drawings):
        map = torch.from_numpy(np.load(tmp_path / 'figure_maps' / f'{index}_CASO.npy', allow_pickle=False))
        attributor = CASO(classifier.model, penalty=Sparsity(.9), classes=3, margin=.2)
        input = classifier.preprocessing(Image.open(drawing))[None]
        output, expected = attributor(input, class_relevance())
        tolerance = rounding(classifier.model, input, unit=output[0].argmax())
        assert_close(map, expected[0].sum(0), tolerance)
        assert (map == 0.).sum() == round(.9 * map.numel())


@pytest.mark.parametrize('penalty', ['1.', '-.1', 'l2:3', 'l1:-1', 'nan', 'l1:nan'])
def test_penalties_that_are_none(penalty, drawings):
    result = run('explain', *drawings, '--model', 'demo', '--method', 'cafo', '--penalty', penalty)
    assert result.returncode == 2 and 'neither the share' in result.stderr
