'''Evaluations as runs that can be killed, resumed and shared.'''
import json
import signal

import numpy as np
import pytest
import torch
from commands import require_error, require_success, run, run_process, run_processes
from processes import end_at
from zennit.attribution import Gradient

from zennit_dc import Balanced, SplitCAM
from zennit_dc.attribution import LayerCAM, class_agreement, class_relevance, map_cosine, relevance_of, runner_up
from zennit_dc.data.classifiers import load_classifier
from zennit_dc.evaluation.data import Drawings


pytest.importorskip('quantus', reason='the extra "evaluation" is not installed')

from zennit_dc.evaluation import tables
from zennit_dc.evaluation.figures import layer_figure, pareto_figure, pareto_front, spectra_figure
from zennit_dc.evaluation.localisation import attribution_localisation
from zennit_dc.evaluation.metrics import pixel_flipping, pointing_game
from zennit_dc.evaluation.mosaics import Mosaics
from zennit_dc.evaluation.randomisation import randomised, similarities
from zennit_dc.evaluation.runs import evaluate, finished
from zennit_dc.evaluation.selection import means
from zennit_dc.evaluation.settings import ABLATIONS, Setting, ablation, grid
from zennit_dc.evaluation.tables import latex, mean_scores, results_table, shortened, standard_errors, summary
from zennit_dc.methods import attributor, saliency_map


OPTIONS = (
    'evaluate', 'drawings', '--model', 'demo', '--images', '12', '--method', 'splitcam', '--method', 'layercam',
    '--method', 'random', '--layer', 'features', '--layer', 'residual', '--alpha', '0.45', '--alpha', 'balanced',
    '--metric', 'pointing_game', '--metric', 'max_sensitivity', '--metric', 'spearman', '--subset', '2',
    '--mosaics', '1', '--ablation', 'pooling'
)
RESULTS = (
    'validation.csv', 'winners.csv', 'test.csv', 'test-means.csv', 'table.tex', 'randomisation.tex', 'mosaics.csv',
    'mosaics.tex', 'ablation.csv', 'ablation-means.csv', 'layers.png', 'maps.png', 'report.md'
)


@pytest.fixture(scope='module', name='whole')
def fixture_whole(tmp_path_factory):
    out = tmp_path_factory.mktemp('whole')
    result = run_process(*OPTIONS, '--out', out)
    require_success(result)
    assert '14 settings on 3 images, the first ones on 9 others' in result.stdout
    assert '3 images cannot name a best setting' in result.stdout
    return out


def lines(out):
    '''All results that were ever written.'''
    texts = [path.read_text() for path in out.rglob('scores-*.jsonl')]
    return [json.loads(line) for text in texts for line in text.splitlines() if line.endswith('}]')]


def named_alike(folder, name):
    '''What is in a file of a folder, but for the folder's name, which the command has.'''
    return (folder / name).read_bytes().replace(folder.name.encode(), b'folder')


@pytest.mark.slow(10)
def test_resume_after_kills(whole, tmp_path):
    '''By SIGKILL, before the folder is of a run, between two scores, and before tables are in their places.'''
    options = (*OPTIONS, '--out', tmp_path)
    for number, function, scores in ((1, 'replace', 0), (7, 'fsync', 1), (2, 'replace', 20), (5, 'replace', 20)):
        killed = run_process(*options, prepare=(end_at, number, function))
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        assert len(lines(tmp_path)) >= scores
        if number == 7:  # as if a line had been written in part
            with (tmp_path / 'scores-0.jsonl').open('a') as file:
                file.write('["0-00001", "Spl')
    require_success(run(*options))
    for name in RESULTS:
        assert named_alike(tmp_path, name) == named_alike(whole, name)
    computed = [(*key, metric) for *key, scores in lines(tmp_path) for metric in scores]
    assert len(computed) == len(set(map(tuple, computed)))  # nothing twice
    count = len(lines(tmp_path))
    require_success(run(*options))
    assert len(lines(tmp_path)) == count


@pytest.mark.slow(10)
def test_two_processes_find_the_same(whole, tmp_path):
    require_success(run_processes(*OPTIONS, '--out', tmp_path))
    for name in RESULTS:
        assert named_alike(tmp_path, name) == named_alike(whole, name)
    assert all('"' in path.read_text() for path in (tmp_path / 'scores-0.jsonl', tmp_path / 'scores-1.jsonl'))


def test_scores_are_those_of_the_metrics(tmp_path):
    classifier = load_classifier('demo')
    drawings = Drawings(classifier, 4)
    settings = grid(['splitcam'], layer=['features'], alpha=[Balanced(.2)], stream=['+g'])
    name = 'layer features, alpha Balanced(kappa=0.2), stream +g'
    assert [setting.name for setting in settings] == [name, f'{name}, abs']
    found = evaluate(
        classifier, drawings, [1, 3], settings, ['pointing_game', 'pixel_flipping_20'], tmp_path, progress=False
    )
    assert len(found) == 8
    for row in found.itertuples():
        sample = drawings.sample(drawings.names.index(row.image))
        composite = SplitCAM('features', Balanced(.2), '+g')
        _, attribution = Gradient(classifier.model, composite)(sample.input[None], class_relevance(sample.label))
        map = attribution.sum(1).abs() if row.setting.endswith('abs') else attribution.sum(1)
        if row.metric == 'pointing_game':
            assert row.score == pointing_game(map, sample.mask[None])[0]
        else:
            target = torch.tensor([sample.label])
            expected = pixel_flipping(classifier.model, sample.input[None], target, map, (.2,))[0, 0]
            assert row.score == pytest.approx(expected, rel=1e-4)
    more = evaluate(classifier, drawings, [1, 2], settings, ['pointing_game'], tmp_path, progress=False)
    assert len(more) == 4 and len(finished(tmp_path)) == 10
    with pytest.raises(ValueError, match='another run, which differs in seed'):
        evaluate(classifier, drawings, [1], settings, ['pointing_game'], tmp_path, seed=1, progress=False)
    with pytest.raises(ValueError, match='another run, which differs in images'):
        evaluate(classifier, Drawings(classifier, 4, 1), [1], settings, ['pointing_game'], tmp_path, progress=False)
    with pytest.raises(ValueError, match='images have no metric \'speed\''):
        evaluate(classifier, drawings, [1], settings, ['speed'], tmp_path, progress=False)


def test_settings():
    chosen = grid(
        ['splitcam', 'splitlrp', 'random'], [False], layer=[None, 'one'], stream=['g', 'positive', 'combined'],
        recentering=['none']
    )
    assert [(setting.title, setting.name) for setting in chosen] == [
        ('SplitCAM', 'layer one, stream g, recentering none'),
        *(('SplitLRP', f'layer {layer}, stream {stream}, recentering none')
          for layer in ('input', 'one') for stream in ('positive', 'combined')),
        ('Random Baseline', '')
    ]
    assert chosen[1].arguments == {'layer': None, 'stream': 'positive', 'recentering': None}
    for message, methods, choices in (
        ('SplitCAM needs layers', ['splitcam'], {'alpha': [.4]}),
        ('SplitCAM needs layers', ['splitcam', 'splitgrad'], {'layer': [None]}),
        ('SplitLRP needs one of the streams', ['splitlrp', 'splitgrad'], {'stream': ['g']}),
        ('none of the methods has a stream \'-h\'', ['splitlrp'], {'stream': ['positive', '-h']}),
        ('none of the methods has a parameter \'window\'', ['splitgrad'], {'window': [3]}),
        ('no method \'magic\'', ['magic'], {}),
    ):
        with pytest.raises(ValueError, match=message):
            grid(methods, **choices)


def test_ablations():
    grad, cam, lrp, random_ = (
        Setting('splitgrad', (('alpha', .4),)), Setting('splitcam', (('layer', 'one'), ('stream', '+g')), True),
        Setting('splitlrp'), Setting('random')
    )
    changed = ablation([grad, grad._replace(parameters=()), cam, lrp, random_], 'alpha', 'recentering')
    ways = len(ABLATIONS['recentering'])
    assert len(changed) == len(set(changed)) == 7 + 7 * ways + ways
    assert [dict(each.parameters)['alpha'] for each in changed[:7]] == list(ABLATIONS['alpha'])
    assert all(each.absolute == (each.method == 'splitcam') for each in changed)
    assert {each.name for each in changed[-ways:]} == {f'recentering {name}' for name in ABLATIONS['recentering']}
    with pytest.raises(ValueError, match='no ablation study of \'layer\''):
        ablation([grad], 'layer')


def test_mosaics_sanity_check_and_time(tmp_path):
    classifier = load_classifier('demo')
    drawings = Drawings(classifier, 10)
    settings = grid(['layercam', 'binary-mask'], [False], layer=['features'])
    whole = Mosaics(drawings, range(10), 1)
    found = evaluate(classifier, whole, range(4), settings, ['grid_pointing_game'], tmp_path / 'a', progress=False)
    assert found.groupby('method')['score'].mean()['Binary Mask'] == pytest.approx(1., abs=1e-6)
    assert .25 < found.groupby('method')['score'].mean()['LayerCAM'] < 1.
    with pytest.raises(ValueError, match='mosaics have no metric \'hog\''):
        evaluate(classifier, whole, range(4), settings, ['hog'], tmp_path / 'a', progress=False)
    with pytest.raises(ValueError, match='images have no metric \'grid_pointing_game\''):
        evaluate(classifier, drawings, [0], settings, ['grid_pointing_game'], tmp_path / 'b', progress=False)
    metrics = ['hog', 'spearman', 'ssim', 'time']
    found = evaluate(classifier, drawings, [2], settings, metrics, tmp_path / 'b', progress=False, randomised_layers=2)
    scores = found.set_index(['method', 'metric'])['score']
    assert [scores['Binary Mask', metric] for metric in metrics[:3]] == pytest.approx([1.] * 3)
    sample = drawings.sample(2)
    maps = [
        LayerCAM(each.model, 'features')(sample.input[None], class_relevance(sample.label))[1][0].sum(0)
        for each in (classifier, randomised(classifier, 2))
    ]
    assert [scores['LayerCAM', metric] for metric in metrics[:3]] == pytest.approx(similarities(*maps), rel=1e-6)
    assert (scores[:, 'time'] > 0.).all()
    with pytest.raises(ValueError, match='randomised layers'):
        evaluate(classifier, drawings, [2], settings, metrics, tmp_path / 'b', progress=False)


def test_a_score_does_not_depend_on_what_else_is_asked(tmp_path):
    '''The map of the trained network is not negative, but that of the randomised one is.'''
    classifier = load_classifier('demo')
    drawings = Drawings(classifier, 10)
    both = grid(['splitcam', 'splitlrp'], layer=['residual'], stream=['-g', '+g', 'positive', 'combined'])
    metrics = ['spearman', 'ssim', 'pointing_game']
    together = evaluate(classifier, drawings, [0, 3], both, metrics, tmp_path / 'both', progress=False)
    absolute = [setting for setting in both if setting.absolute]
    alone = evaluate(classifier, drawings, [0, 3], absolute, metrics, tmp_path / 'one', progress=False)
    keys = ['image', 'method', 'setting', 'metric']
    together = together.set_index(keys)['score']
    assert all(together[tuple(row[keys])] == row['score'] for _, row in alone.iterrows())


def test_failures_are_named_and_leave_the_others(tmp_path, capsys, monkeypatch):
    from zennit_dc.evaluation import runs

    classifier = load_classifier('demo')
    drawings = Drawings(classifier, 4)
    settings = grid(['gradient', 'random'], [False])
    explain = runs.explain_by

    def failing(error):
        def explain_or_fail(attributor, device, dtype, against, inputs, targets):
            if int(targets[0]) == 1 and type(attributor) is Gradient:
                raise error('of a wrong number')
            return explain(attributor, device, dtype, against, inputs, targets)
        return explain_or_fail

    monkeypatch.setattr(runs, 'explain_by', failing(FloatingPointError))
    found = evaluate(classifier, drawings, [0, 1], settings, ['pointing_game'], tmp_path / 'a', progress=False)
    assert found['score'].isna().tolist() == [False, False, True, False]
    assert '0-00001, Gradient: no score, as of a wrong number' in capsys.readouterr().err
    assert results_table(found)[1][-1] == '–'
    monkeypatch.setattr(runs, 'explain_by', failing(ValueError))
    with pytest.raises(ValueError, match='0-00001, Gradient: of a wrong number'):
        evaluate(classifier, drawings, [0, 1], settings, ['pointing_game'], tmp_path / 'b', progress=False)
    assert len(finished(tmp_path / 'b')) < 4
    monkeypatch.undo()
    with runs.appended(tmp_path / 'b' / 'scores-0.jsonl'), pytest.raises(ValueError, match='another process writes'):
        evaluate(classifier, drawings, [0, 1], settings, ['pointing_game'], tmp_path / 'b', progress=False)
    found = evaluate(classifier, drawings, [0, 1], settings, ['pointing_game'], tmp_path / 'b', progress=False)
    assert not found['score'].isna().any()
    with pytest.raises(ValueError, match='float32 or float64'):
        evaluate(classifier, drawings, [0], settings, ['pointing_game'], tmp_path, dtype=torch.bfloat16)
    scores = [
        evaluate(classifier, drawings, [0], settings[1:], ['spearman', 'pixel_flipping_5'], tmp_path / str(seed),
                 seed=seed, progress=False)['score'].tolist() for seed in (0, 1)
    ]
    assert scores[0][0] == scores[1][0] == 1. and scores[0][1] != scores[1][1]


def test_layer_figure():
    pd = pytest.importorskip('pandas')
    settings = grid(['layercam', 'splitgrad', 'random'], [False], layer=['one', None, 'two'], alpha=[.4, .5])
    scores = pd.DataFrame([
        ('a', setting.title, setting.name, metric, float(number))
        for number, setting in enumerate(settings) for metric in ('pointing_game', 'selectivity')
    ], columns=['image', 'method', 'setting', 'metric', 'score'])
    figure = layer_figure(scores, settings, [settings[0], settings[3], settings[-1]], ['zero', 'two', 'one'])
    first, second = figure.axes
    assert [each.get_text() for each in first.get_xticklabels()] == ['input', 'two', 'one']
    lines = [bar.lines[0] for bar in first.containers]
    assert [line.get_xdata().tolist() for line in lines] == [[1, 2], [0, 1, 2]]
    assert [line.get_ydata().tolist() for line in lines] == [[1., 0.], [5., 7., 3.]]
    assert second.get_title() == 'Point. ↑'
    assert [each.get_text() for each in figure.legends[0].get_texts()] == ['LayerCAM', 'SplitGrad alpha 0.5']
    assert layer_figure(scores, settings, [settings[-1]], []) is None


@pytest.mark.parametrize('larger_is_better', [True, False])
def test_the_front_is_what_no_other_setting_beats(larger_is_better):
    pd = pytest.importorskip('pandas')
    points = pd.DataFrame(np.random.default_rng(0).integers(8, size=(40, 2)) / 8., columns=['game', 'price'])
    front = pareto_front(points, larger_is_better)
    assert front['game'].is_monotonic_increasing and not front.duplicated().any()
    sign = 1. if larger_is_better else -1.

    def beaten(point, by):
        better = by['game'] >= point['game'], sign * by['price'] >= sign * point['price']
        return (better[0] & better[1] & ((by['game'] != point['game']) | (by['price'] != point['price']))).any()

    assert not any(beaten(point, points) for _, point in front.iterrows())
    left = points.merge(front, how='left', indicator=True).query('_merge == "left_only"')
    assert len(left) and all(beaten(point, front) for _, point in left.iterrows())


def test_pareto_figure():
    pd = pytest.importorskip('pandas')
    scores = pd.DataFrame([
        ('a', method, setting, metric, value) for method, setting, values in (
            ('CAM', 'one', (.9, .5, 1.)), ('CAM', 'two', (.8, .6, 2.)), ('LRP-γ', '', (.7, .1, 3.)),
            ('Image Center', '', (.95, 0., 4.)), ('DeepLift', '', (.6, .2, None)),
        ) for metric, value in zip(('grid_pointing_game', 'max_sensitivity', 'pixel_flipping_20'), values)
        if value is not None
    ], columns=['image', 'method', 'setting', 'metric', 'score'])
    figure = pareto_figure(scores)
    robust, faithful = figure.axes
    assert robust.yaxis_inverted() and not faithful.yaxis_inverted()
    assert figure.get_supxlabel() == '1  LRP-γ\n2  CAM one\n3  CAM two'
    assert [[each.get_text() for each in axis.texts] for axis in figure.axes] == [['1', '2'], ['1', '3', '2']]
    assert [robust.lines[-1].get_xdata().tolist(), faithful.lines[-1].get_ydata().tolist()] == [[.7, .9], [3., 2., 1.]]
    titles = [each.get_text() for each in figure.legends[0].get_texts()]
    assert titles == ['CAM', 'LRP-γ', 'Image Center', 'DeepLift']
    assert pareto_figure(scores[scores['metric'] == 'max_sensitivity']) is None
    zeros = scores.replace({'score': {.5: np.inf}})  # Max Sensitivity of a map of zeros
    assert [each.get_text() for each in pareto_figure(zeros).axes[0].texts] == ['1', '2']


SETTINGS = (
    'evaluate', 'drawings', '--model', 'demo', '--images', '12', '--mosaics', '1', '--subset', '2',
    '--setting', 'splitlrp layer=input,features stream=positive against=likely', '--setting', 'image-center',
    '--setting', 'guided-backprop absolute', '--setting', 'integrated-gradients steps=2', '--costly',
    'integrated-gradients', '--metric', 'object_auc', '--metric', 'negative_localisation', '--metric',
    'pixel_flipping_20', '--metric', 'max_sensitivity', '--sensitivity-samples', '2', '--flipping-step', '200',
)


def test_settings_are_reported_without_a_choice(tmp_path):
    pd = pytest.importorskip('pandas')
    result = run(*SETTINGS, '--out', tmp_path)
    require_success(result)
    assert '5 settings on 9 images' in result.stdout
    page = (tmp_path / 'report.md').read_text()
    for text in ('Grid Point. ↑', 'AUC Obj. ↑', '4 for Grid Point', '2 for Pixel Fl. AUC@20, Max Sens', 'settings.csv'):
        assert text in page
    assert f'zennit-dc {SETTINGS[0]} drawings --model demo' in page
    means_of = pd.read_csv(tmp_path / 'settings-means.csv').set_index('metric')['images']
    assert means_of['negative_localisation'].eq(9).all() and means_of['max_sensitivity'].eq(2).all()
    scores = pd.read_csv(tmp_path / 'settings.csv').fillna({'setting': ''})
    counts = scores.groupby(['method', 'setting']).count()
    assert {*counts.index} == {
        ('SplitLRP', 'layer input, stream positive, against likely'), ('Image Center', ''), ('Guided Backprop', 'abs'),
        ('SplitLRP', 'layer features, stream positive, against likely'), ('Integrated Gradients', 'steps 2'),
    }
    assert (counts['object_auc'] == 9).all() and (counts['pixel_flipping_20'] == 2).all()
    assert counts.loc['Integrated Gradients', 'grid_pointing_game'].eq(0).all()
    assert ',nan,' in (tmp_path / 'settings.csv').read_text()  # not a number, where an empty cell is no score
    assert counts.loc[['SplitLRP', 'Image Center'], 'max_sensitivity'].eq(2).all()
    center = scores[scores['method'] == 'Image Center']
    assert np.allclose(center['grid_pointing_game'].dropna(), .25) and center['negative_localisation'].isna().all()
    assert (tmp_path / 'pareto.png').is_file() and (tmp_path / 'maps.png').is_file()
    written = {path: path.read_bytes() for path in tmp_path.rglob('*.jsonl')}
    require_success(run(*SETTINGS[:-2], '--flipping-step', '200', '--setting', 'random', '--out', tmp_path))
    assert all(path.read_bytes().startswith(text) for path, text in written.items())  # goes on, and keeps what it has
    require_error(run(*SETTINGS[:-2], '--out', tmp_path), 'flipping step')


@pytest.mark.parametrize('setting, message', [
    ('magic', 'magic'), ('', 'none of them'), ('splitcam', 'SplitCAM needs layers'), ('splitlrp against=all', 'all'),
    ('splitgrad alpha=much', 'much'), ('splitgrad speed=1', '\'speed=1\' is neither absolute'),
    ('gradient steps=3', 'has a parameter'), ('splitgrad signed', '\'signed\' is neither absolute'),
    ('splitlrp stream=g', 'has a stream'),
])
def test_bad_settings(setting, message, tmp_path):
    options = 'evaluate', 'drawings', '--model', 'demo', '--images', '4', '--out', tmp_path / 'out'
    require_error(run(*options, '--setting', setting), message)


def test_settings_take_no_parameters_beside(tmp_path):
    options = 'evaluate', 'drawings', '--model', 'demo', '--images', '4', '--out', tmp_path / 'out'
    for more in (('--layer', 'features'), ('--ablation', 'alpha')):
        require_error(run(*options, '--setting', 'gradient', *more), 'has its own parameters')


def test_more_images_contain_fewer():
    from zennit_dc.evaluation.comparison import MethodComparison

    classifier = load_classifier('demo')
    comparison = MethodComparison(classifier, Drawings(classifier, 20), '', [], (), None, 0, .25, {'seed': 0}, print)
    chosen = [comparison.sample(count) for count in (3, 7, None)]
    assert {*chosen[0]} < {*chosen[1]} < {*chosen[2]} == {*comparison.test}


def test_options_in_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = tmp_path / 'options.toml'
    options.write_text('source = "drawings"\nmodel = "demo"\nimages = 4\nmethod = ["layercam"]\n'
                       'layer = ["features"]\nmetric = ["pointing_game"]\nsubset = 1\nout = "there"\n')
    result = run('evaluate', '--config', options, '--method', 'gradcam')
    require_success(result)
    assert 'GradCAM' in (tmp_path / 'there' / 'report.md').read_text()
    assert 'LayerCAM' not in result.stdout
    for text, message in (
        ('images = 3\nspeed = 1', '\'speed\''), ('[', 'as TOML'), ('images = "many"', 'many'),
        ('layer = "features"', 'must be a list')
    ):
        options.write_text(text)
        require_error(run('evaluate', 'drawings', '--config', options), message)


def test_tables(whole):
    pd = pytest.importorskip('pandas')
    lines = (whole / 'report.md').read_text().splitlines()
    rows = [line for line in lines if line.startswith('|')]
    assert [row.split(',')[0].split('|')[1].strip() for row in rows[2:]][-1] == 'Random Baseline' and len(rows) == 2 + 3
    assert all(len(row) <= 80 for row in rows)
    winning = pd.read_csv(whole / 'winners.csv').fillna('')
    text = (whole / 'table.tex').read_text()
    assert text.count(r'\\') == 1 + len(winning[['method', 'setting']].drop_duplicates()) and r'\toprule' in text
    assert r'50\% \& α'.replace('α', r'$\alpha$') in latex([['x'], ['50% & α']])


def test_the_best_score_has_a_star():
    pd = pytest.importorskip('pandas')
    scores = pd.DataFrame([
        ('a', 'CAM', setting, metric, value) for setting, values in {'one': (1., 1.), 'two': (2., 2.)}.items()
        for metric, value in zip(('pointing_game', 'selectivity'), values)
    ], columns=['image', 'method', 'setting', 'metric', 'score'])
    header, one, two = results_table(scores)
    assert header == ['method', 'setting', 'Select. ↓ (n = 1)', 'Point. ↑ (n = 1)']
    assert one == ['CAM', 'one', '1.00*', '1.00'] and two == ['CAM', 'two', '2.00', '2.00*']
    header, *rows = results_table(pd.concat([scores, scores.assign(method='Binary Mask')]))
    assert [row[-1] for row in rows] == ['1.00', '2.00*', '1.00', '2.00']
    more = pd.concat([scores, scores[scores['metric'] == 'selectivity'].assign(image='b')])
    assert results_table(more)[0][2:] == ['Select. ↓ (n = 2)', 'Point. ↑ (n = 1)']


def test_standard_errors_are_those_of_the_mean():
    pd = pytest.importorskip('pandas')
    values = np.random.default_rng(1).normal(size=50)
    scores = pd.DataFrame(
        [(str(index), 'CAM', 'one', 'pointing_game', value) for index, value in enumerate(values)],
        columns=['image', 'method', 'setting', 'metric', 'score']
    )
    error = standard_errors(scores).loc[('CAM', 'one'), 'pointing_game']
    # 1,000 samples have the standard error up to some 2 %
    assert abs(error / (values.std() / 50 ** .5) - 1.) < .1
    assert results_table(scores)[1][-1] == f'{values.mean():.2f} ± {error:.2f}*'


@pytest.fixture(name='several')
def fixture_several():
    '''Scores of twelve methods with two settings each, and of two controls.'''
    pd = pytest.importorskip('pandas')
    drawn = np.random.default_rng(0)
    methods = [*(f'Method {number}' for number in range(12)), 'Random Baseline', 'Image Center']
    return pd.DataFrame([
        (image, method, setting, metric, min(.05 * place, .3) + .1 * (setting == 'layer two') + .01 * drawn.normal())
        for place, method in enumerate(methods) for setting in ('layer one', 'layer two') for image in 'abcdef'
        for metric in ('pointing_game', 'grid_pointing_game', 'hog')
    ], columns=['image', 'method', 'setting', 'metric', 'score'])


def test_a_summary_has_the_best_setting_of_each_method(several):
    header, _, *rows = summary(several).splitlines()
    cells = [[cell.strip() for cell in row.strip('|').split('|')] for row in rows]
    assert [cell.strip() for cell in header.strip('|').split('|')] == ['setting', 'Grid Point. ↑', 'Point. ↑', 'HOG ↓']
    assert len(rows) == 10 and all(row[0].endswith(', two') for row in cells)
    assert {row[0] for row in cells[-2:]} == {'Random Baseline, two', 'Image Center, two'}  # as the controls come last
    shown = [float(row[1].split()[0]) for row in cells[:-2]]
    assert shown == sorted(shown, reverse=True)
    found = mean_scores(several).set_index(['method', 'setting', 'metric'])
    means = found.loc[(slice(None), 'layer two', 'grid_pointing_game'), 'mean']
    explaining = means.drop(index=['Random Baseline', 'Image Center'], level='method')
    assert shown == [float(f'{value:.2f}') for value in explaining.sort_values(ascending=False)[:8]]
    assert found['images'].eq(6).all()
    chosen = [('Method 1', 'layer one'), ('Method 2', 'layer one')]
    assert [row.split('|')[1].strip() for row in summary(several, chosen).splitlines()[2:]] == [
        'Method 2, one', 'Method 1, one'
    ]


def test_a_summary_fits_whatever_the_names_are(several):
    long = several.assign(setting=several['setting'] + '.conv' * 30)
    assert {len(line) for line in summary(long).splitlines()} <= set(range(81)) and '…' in summary(long)


def test_a_message_tells_whether_two_methods_differ(several):
    own = several[several['method'].isin(['Method 3', 'Image Center'])]
    other = own[own['method'] == 'Method 3'].assign(method='Method 4')  # better on half of the images, worse on others
    other['score'] += other['image'].map({image: .05 if image in 'abc' else -.05 for image in 'abcdef'})
    sentences = tables.message(tables.pd.concat([own, other]))
    assert sentences.startswith('By Grid Point (6 images), Method ') and sentences.count('. ') == 2
    assert 'is not more than two standard errors' in sentences and 'Image Center has 0.' in sentences
    ahead = several['method'].eq('Method 3').astype(float)
    apart = tables.message(several.assign(score=several['score'] + ahead))
    assert 'Method 3 (two) is the best setting, with 1.2' in apart and 'is more than two' in apart
    alone = several[several['method'] == 'Method 3']
    assert tables.message(alone).count('Method') == 1 and 'No control' in tables.message(alone)


def test_names_of_parameters_that_speak_for_themselves_are_left_out():
    assert shortened('SplitLRP', 'layer input, stream positive, against none') == 'SplitLRP, input, positive, none'
    assert shortened('SplitCAM', 'alpha 0.4, recentering none, abs') == 'SplitCAM, alpha 0.4, recentering none, abs'
    assert shortened('Image Center', '') == 'Image Center'


def test_against_is_a_dimension_of_settings():
    settings = grid(['splitgrad', 'random'], [False], alpha=[.4], against=['none', 'others', 'likely'])
    assert [(each.title, each.name, each.against) for each in settings] == [
        *(('SplitGrad', f'alpha 0.4, against {each}', each) for each in ('none', 'others', 'likely')),
        ('Random Baseline', '', 'none')
    ]
    assert all('against' not in each.arguments for each in settings)
    assert [each.against for each in ablation(settings[:1], 'against')] == ['none', 'others', 'likely']


def test_scores_of_contrasts(tmp_path):
    classifier = load_classifier('demo')
    images = Drawings(classifier, 4, 0)
    settings = grid(['splitgrad', 'saliency'], [False], against=['none', 'others', 'likely'])
    scores = evaluate(classifier, images, [1, 2], settings, ['attribution_localisation', 'class_agreement'], tmp_path,
                      progress=False).set_index(['image', 'method', 'setting', 'metric'])['score']
    for index in (1, 2):
        sample = images.sample(index)
        for setting in settings:
            relevance = relevance_of(sample.label, setting.against)
            chosen = attributor(setting.method, classifier)
            map = chosen(sample.input[None], relevance)[1].detach().sum(1)
            own = scores.sort_index().loc[images.names[index], setting.title, setting.name]
            expected = attribution_localisation(map, sample.mask[None], positive=True).item()
            assert own['attribution_localisation'] == pytest.approx(expected, rel=1e-4)
            expected = class_agreement(chosen, sample.input[None], sample.label).item()  # of classes by themselves
            assert own['class_agreement'] == pytest.approx(expected, abs=1e-4)


def test_class_agreement_is_that_of_the_classes_by_themselves(tmp_path):
    '''Whatever the map is that is shown, and for its absolute value of absolute values: no scores are shared with maps
    that happen to be without negative values.'''
    classifier = load_classifier('demo')
    images = Drawings(classifier, 4, 0)
    settings = [
        setting for absolute in (False, True) for setting in
        grid(['splitlrp', 'lrp-gamma'], [absolute], layer=['features'], against=['none', 'likely', 'others'])
    ]
    scores = evaluate(classifier, images, [1], settings, ['class_agreement'], tmp_path, progress=False)
    for absolute in (False, True):
        for title, method in (('SplitLRP', 'splitlrp'), ('LRP-γ', 'lrp-gamma')):
            of = scores['setting'].str.endswith(', abs') == absolute
            found = scores[(scores['method'] == title) & of]['score'].tolist()
            sample = images.sample(1)
            output = classifier.model(sample.input[None])[0]
            other = runner_up(output, sample.label)
            maps = [
                saliency_map(attributor(method, classifier, layer='features'), sample.input[None], each)[1]
                for each in (sample.label, other)
            ]
            expected = map_cosine(*(map.abs() if absolute else map for map in maps)).item()
            assert len(found) == 3 and found == pytest.approx(3 * [expected], abs=1e-4)


@pytest.mark.parametrize('arguments, message', [
    (['missing', '--layer', 'features'], 'no folder'),
    (['drawings', '--layer', 'nowhere'], 'nowhere'),
    (['drawings'], 'needs layers'),
    (['drawings', '--layer', 'features', '--share', '1.5'], '1.5'),
    (['drawings', '--layer', 'features', '--metric', 'speed'], 'speed'),
    (['missing', '--layer', 'features', '--outlines', 'missing.json'], 'missing.json'),
    (['drawings', '--layer', 'features', '--metric', 'time', '--ablation', 'alpha'], 'ablations are of'),
    (['drawings', '--layer', 'features', '--metric', 'hog', '--randomised-layers', '99'], 'not 99'),
    (['drawings', '--layer', 'features', '--mosaics', '1'], 'four classes'),
    (['drawings', '--layer', 'features', '--ablation', 'recentering'], 'none of the best settings depends on recent'),
    (['drawings', '--layer', 'features', '--model', 'squeezenet1_0', '--weights', 'none'], 'none'),
])
def test_bad_arguments(tmp_path, arguments, message, monkeypatch):
    monkeypatch.chdir(tmp_path)
    require_error(run('evaluate', *arguments, '--model', 'demo', '--images', '4'), message)


def test_spectra(tmp_path):
    '''The gradient is its own reference: of the input, and times the activation at a layer.'''
    classifier = load_classifier('demo')
    images = Drawings(classifier, 4, 0)
    metrics = ['expected_frequency', 'frequency_gap', 'gradient_gap', 'pixel_flipping_5']
    settings = [
        *grid(['gradient', 'layercam', 'random'], [False], layer=['features']),
        *grid(['splitcam', 'splitgrad'], [False], layer=[None, 'features'], alpha=[.5, .3]),
    ]
    scores = evaluate(classifier, images, [0, 2], settings, metrics, tmp_path, progress=False)
    table = means(scores)
    same = [('Gradient', ''), ('SplitCAM', 'layer features, alpha 0.5'), ('SplitGrad', 'layer input, alpha 0.5')]
    assert (table.loc[same, ['frequency_gap', 'gradient_gap']] < 1e-5).all(axis=None)  # float32
    others = table.drop(index=same)
    assert (others['gradient_gap'] > .01).all() and (table['expected_frequency'].between(0., .71)).all()
    assert table.loc[('Random Baseline', ''), 'gradient_gap'] > .9
    header, *rows = results_table(scores[scores['metric'] != 'pixel_flipping_5'])
    assert header[2:] == ['Exp. Freq. (n = 2)', 'Freq. Gap ↓ (n = 2)', 'Grad. Gap ↓ (n = 2)']
    assert not any('*' in row[2] for row in rows) and any('*' in row[4] for row in rows)
    figure = spectra_figure(scores, settings)
    assert [axis.get_xlabel() for axis in figure.axes] == ['Exp. Freq.', 'Exp. Freq.', 'Grad. Gap ↓']
    assert len(figure.axes[0].lines) == len(figure.legends[0].get_texts())
    assert spectra_figure(scores[scores['metric'] == 'gradient_gap'], settings) is None
