'''Commands that replay maps from recordings write the same files.'''
import filecmp
import json

import numpy as np
import pytest
import torch
from commands import require_success, run
from helpers import random_image
from small_models import Small
from torch import nn
from zennit.attribution import Gradient, SmoothGrad

from zennit_dc import SplitCAM, SplitGrad
from zennit_dc.attribution import Recorded, class_relevance
from zennit_dc.attribution.graphs import Replay
from zennit_dc.cli.report import save_drawings
from zennit_dc.data.classifiers import load_classifier
from zennit_dc.data.images import ImageFolder, label_map
from zennit_dc.demo import CLASSES, draw_batch
from zennit_dc.methods import attributor, replaying, replays


class ReadsValues(nn.Module):
    '''A model that cannot be recorded.'''
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        output = self.model(x)
        return output / output.detach().abs().max().item()


@pytest.fixture(name='replayed')
def fixture_replayed(monkeypatch):
    '''How often maps were replayed, where two calls are enough for a recording.'''
    counts, call = [], Replay.__call__

    def counted(self, *args):
        counts.append(self)
        return call(self, *args)

    monkeypatch.setattr(replays, 'ENOUGH', 2)
    monkeypatch.setattr(replays, 'PATIENCE', 1)
    monkeypatch.setattr(Replay, '__call__', counted)
    return counts


@pytest.fixture(scope='module', name='drawings')
def fixture_drawings(tmp_path_factory):
    '''A folder of four drawings.'''
    folder = tmp_path_factory.mktemp('drawings')
    save_drawings(folder, *draw_batch(4, 5))
    return folder / 'images'


def test_what_is_replayed():
    model, many = Small(), replays.ENOUGH
    replay = replaying(Gradient(model, SplitGrad(), class_relevance(1)), many)
    assert type(replay) is Recorded and not replay.strict
    own = Gradient(model, SplitGrad(), class_relevance(1))(random_image(2, 2, 4, 4))
    assert all(map(torch.equal, replay(random_image(2, 2, 4, 4)), own))
    for same, calls in (
        (Gradient(model, SplitGrad()), many - 1), (Gradient(model), many), (SmoothGrad(model, SplitGrad()), many),
        (Gradient(model, SplitGrad(), create_graph=True), many), (replay, many),
        (Gradient(Small().to('meta'), SplitGrad()), many), (attributor('lrp-gamma', load_classifier('demo')), many),
    ):
        assert replaying(same, calls) is same


def attribute_drawings(drawings, out, classifier=None, layer='residual', batch_size=1, **options):
    virelay = pytest.importorskip('zennit_dc.virelay')
    pytest.importorskip('h5py', reason='the extra "virelay" is not installed')
    images = ImageFolder(drawings, label_map(CLASSES))
    virelay.attribute(
        classifier or load_classifier('demo'), images, out, layer=layer, batch_size=batch_size, progress=False,
        **options
    )


def test_attribute_writes_the_same_file(drawings, tmp_path, replayed, monkeypatch):
    '''Also where it was interrupted, and goes on with a recording or without.'''
    attribute_drawings(drawings, tmp_path / 'plain.h5', record=False)
    assert not replayed
    attribute_drawings(drawings, tmp_path / 'recorded.h5')
    assert len(replayed) == 3  # the second call is recorded and compared, the third and fourth are replayed
    assert filecmp.cmp(tmp_path / 'plain.h5', tmp_path / 'recorded.h5', shallow=False)

    from zennit_dc.virelay import attributions

    explain_batch, explained = attributions.explain_batch, []

    def interrupted(*args):
        if len(explained) == 3:
            raise KeyboardInterrupt
        explained.append(explain_batch(*args))
        return explained[-1]

    for name, record in ('a.h5', True), ('b.h5', False):
        explained.clear()
        with monkeypatch.context() as patch:
            patch.setattr(attributions, 'explain_batch', interrupted)
            with pytest.raises(KeyboardInterrupt):
                attribute_drawings(drawings, tmp_path / name)
        attribute_drawings(drawings, tmp_path / name, record=record)
        assert filecmp.cmp(tmp_path / 'plain.h5', tmp_path / name, shallow=False)


def test_a_last_batch_is_not_recorded(drawings, tmp_path, replayed):
    for name, record in ('plain.h5', False), ('recorded.h5', True):
        attribute_drawings(drawings, tmp_path / name, batch_size=3, record=record)
    assert not replayed
    assert filecmp.cmp(tmp_path / 'plain.h5', tmp_path / 'recorded.h5', shallow=False)


def test_a_model_that_cannot_be_recorded(drawings, tmp_path, replayed):
    classifier = load_classifier('demo')
    classifier = classifier._replace(model=ReadsValues(classifier.model).eval())
    for name, record in ('plain.h5', False), ('recorded.h5', True):
        attribute_drawings(drawings, tmp_path / name, classifier, 'model.residual', record=record)
    assert filecmp.cmp(tmp_path / 'plain.h5', tmp_path / 'recorded.h5', shallow=False)
    assert not replayed


def test_a_call_that_is_recorded_draws_the_same_random_numbers(replayed):
    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = Small()

        def forward(self, x):
            return self.model(x + torch.rand(x.shape, dtype=x.dtype))

    model, found = Noisy().eval(), []
    for calls in 0, 4:
        torch.manual_seed(0)
        chosen = replaying(Gradient(model, SplitCAM('model.conv2')), calls)
        found.append([chosen(random_image(1, 2, 4, 4))[1].detach() for _ in range(4)])
    assert type(chosen) is Recorded and not replayed
    assert all(map(torch.equal, *found))


def test_evaluate_finds_the_same_scores(tmp_path, replayed):
    pytest.importorskip('quantus', reason='the extra "evaluation" is not installed')
    from zennit_dc.evaluation.data import Drawings
    from zennit_dc.evaluation.runs import evaluate
    from zennit_dc.evaluation.settings import grid

    classifier = load_classifier('demo')
    drawings, written = Drawings(classifier, 4), []
    settings = grid(['splitcam', 'random', 'binary-mask'], layer=['residual'])
    for name, record in ('plain', False), ('recorded', True):
        evaluate(
            classifier, drawings, range(4), settings, ['pointing_game', 'max_sensitivity', 'spearman'],
            tmp_path / name, progress=False, sensitivity_samples=2, record=record
        )
        assert (len(set(map(id, replayed))) >= 2) == record  # of the model, and of that with randomised layers
        written.append([
            (tmp_path / name / each).read_bytes() for each in ('scores-0.jsonl', 'run.json')
        ])
    assert written[0] == written[1]


def test_the_time_of_a_map_is_that_of_a_plain_call(tmp_path, replayed):
    pytest.importorskip('quantus', reason='the extra "evaluation" is not installed')
    from zennit_dc.evaluation.data import Drawings
    from zennit_dc.evaluation.runs import evaluate
    from zennit_dc.evaluation.settings import grid

    classifier = load_classifier('demo')
    evaluate(
        classifier, Drawings(classifier, 3), range(3), grid(['splitcam'], [False], layer=['residual']), ['time'],
        tmp_path, progress=False
    )
    assert len(replayed) == 2  # the second map is recorded and compared, and the third one replayed


def test_explain_saves_the_same_maps(drawings, tmp_path, replayed):
    options = (
        'explain', *sorted(drawings.glob('*/*.png')), '--model', 'demo', '--method', 'splitcam@residual', '--method',
        'gradient', '--save-arrays', '--no-support'
    )
    require_success(run(*options, '--no-record', '--out', tmp_path / 'plain' / 'a.png'))
    assert not replayed
    require_success(run(*options, '--out', tmp_path / 'recorded' / 'a.png'))
    assert replayed
    names = sorted(path.name for path in (tmp_path / 'plain' / 'a_maps').iterdir())
    arrays = [name for name in names if name.endswith('.npy')]
    assert len(arrays) == 8 and names == sorted(path.name for path in (tmp_path / 'recorded' / 'a_maps').iterdir())
    for name in arrays:
        one, two = (np.load(tmp_path / each / 'a_maps' / name) for each in ('plain', 'recorded'))
        assert one.tobytes() == two.tobytes()


@pytest.mark.parametrize('options, called', [((), True), (('--no-record',), False)])
def test_attribute_is_told_not_to_record(drawings, tmp_path, replayed, options, called):
    pytest.importorskip('h5py', reason='the extra "virelay" is not installed')
    require_success(run(
        'attribute', drawings, '--model', 'demo', '--layer', 'residual', '--batch-size', 1, '--out',
        tmp_path / 'a.h5', *options
    ))
    assert bool(replayed) == called


def test_evaluate_is_told_not_to_record(tmp_path, replayed):
    pytest.importorskip('quantus', reason='the extra "evaluation" is not installed')
    require_success(run(
        'evaluate', 'drawings', '--model', 'demo', '--images', 4, '--setting', 'splitcam layer=residual', '--metric',
        'pointing_game', '--no-record', '--out', tmp_path
    ))
    assert not replayed
    lines = (tmp_path / 'scores-0.jsonl').read_text().splitlines()
    assert [json.loads(line)[1] for line in lines if line] == ['SplitCAM'] * 3
