'''Attributions of data sets, their analyses and projects.'''
import filecmp
import json
import os
import random
import resource
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image
from zennit.attribution import Gradient

from zennit_dc import SplitCAM, SplitGrad
from zennit_dc.attribution import class_relevance
from zennit_dc.demo import CLASSES, draw_batch
from zennit_dc.demo.report import save_drawings
from zennit_dc.images import ImageArray, ImageFolder, label_map, load_label_map
from zennit_dc.models import Classifier, IMAGENET_PREPROCESSING, load_classifier
from zennit_dc.virelay import analyze, attribute, project

h5py = pytest.importorskip('h5py', reason='the extra "virelay" is not installed')

FILES = ('attribution.h5', 'attribution_data.h5', 'attribution_labels.json')
OPTIONS = ('--model', 'demo', '--layer', 'residual', '--method', 'splitcam', '--batch-size', '4')


def command(*arguments):
    return [sys.executable, '-m', 'zennit_dc', *map(str, arguments)]


def run(arguments, **kwargs):
    return subprocess.run(
        arguments, capture_output=True, text=True, timeout=300, env={**os.environ, 'OMP_NUM_THREADS': '1'}, **kwargs
    )


@pytest.fixture(scope='module', name='folder')
def fixture_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp('drawings')
    save_drawings(folder, *draw_batch(90, 11))
    return folder / 'images'


@pytest.fixture(scope='module', name='finished')
def fixture_finished(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp('finished') / 'attribution.h5'
    result = run(command('attribute', folder, *OPTIONS, '--out', out))
    assert result.returncode == 0, result.stderr
    return out.parent


def require_same(first, second):
    for name in FILES:
        assert filecmp.cmp(first / name, second / name, shallow=False), name


def test_attributions_of_a_folder(folder, finished):
    classifier = load_classifier('demo')
    paths = sorted(folder.glob('*/*.png'))
    with h5py.File(finished / 'attribution.h5') as file, h5py.File(finished / 'attribution_data.h5') as data:
        assert file['attribution'].shape == (90, 3, 64, 64) and file['attribution'].dtype == np.float32
        assert file['name'].asstr()[:].tolist() == [path.relative_to(folder).as_posix() for path in paths]
        assert json.loads(file.attrs['run'])['layer'] == 'residual'
        for row in (0, 41, 89):
            image = Image.open(paths[row])
            output, attribution = Gradient(classifier.model, SplitCAM('residual'))(
                classifier.preprocessing(image)[None], class_relevance()
            )
            np.testing.assert_allclose(
                file['attribution'][row], attribution[0], rtol=1e-4, atol=1e-5 * attribution.abs().max().item()
            )
            np.testing.assert_allclose(file['prediction'][row], output[0].detach(), rtol=1e-4, atol=1e-4)
            assert file['target'][row] == output.argmax()
            assert file['label'][row] == data['label'][row]
            assert CLASSES[file['label'][row]] == paths[row].parent.name.replace('_', ' ')
            assert (data['data'][row] == np.array(image)).all()
    entries = json.loads((finished / 'attribution_labels.json').read_text())
    assert [(entry['index'], entry['name']) for entry in entries] == list(enumerate(CLASSES))
    assert {entry['word_net_id'] for entry in entries} == {path.parent.name for path in paths}


def test_a_finished_run_is_not_run_again(folder, finished):
    before = [(finished / name).stat().st_mtime_ns for name in FILES]
    result = run(command('attribute', folder, *OPTIONS, '--out', finished / 'attribution.h5'))
    assert result.returncode == 0 and '90 images' in result.stdout
    assert before == [(finished / name).stat().st_mtime_ns for name in FILES]
    result = run(command('attribute', folder, *OPTIONS, '--alpha', .3, '--out', finished / 'attribution.h5'))
    assert result.returncode != 0 and len(result.stderr.splitlines()) == 1 and 'alpha' in result.stderr


def test_resume_after_kills_at_random_moments(folder, finished, tmp_path):
    out, moments = tmp_path / 'attribution.h5', random.SystemRandom()
    parts, kills = tmp_path / 'attribution.h5.parts', []
    for _ in range(4):
        process = subprocess.Popen(
            command('attribute', folder, *OPTIONS, '--out', out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            env={**os.environ, 'OMP_NUM_THREADS': '1'}
        )
        before = len(list(parts.glob('*.npz')))
        deadline = time.monotonic() + 60.
        while process.poll() is None and len(list(parts.glob('*.npz'))) == before and time.monotonic() < deadline:
            time.sleep(.002)
        time.sleep(moments.uniform(0., .15))
        process.send_signal(signal.SIGKILL)
        process.wait()
        kills.append((before, len(list(parts.glob('*.npz'))), out.exists()))
    assert kills[0][1] > 0, kills
    result = run(command('attribute', folder, *OPTIONS, '--out', out))
    assert result.returncode == 0, result.stderr
    require_same(tmp_path, finished)
    assert sorted(path.name for path in tmp_path.iterdir() if not path.name.endswith('.tmp')) == sorted(FILES), kills


def test_two_processes_make_the_same_files(folder, finished, tmp_path):
    result = run([
        sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node', '2', '-m', 'zennit_dc',
        'attribute', folder, *OPTIONS, '--out', tmp_path / 'attribution.h5'
    ])
    assert result.returncode == 0, result.stderr
    assert result.stdout.count('90 images') == 1
    require_same(tmp_path, finished)


def test_processes_that_read_images(folder, finished, tmp_path):
    result = run(command('attribute', folder, *OPTIONS, '--workers', 2, '--out', tmp_path / 'attribution.h5'))
    assert result.returncode == 0, result.stderr
    require_same(tmp_path, finished)


def test_unreadable_images_are_left_out(folder, tmp_path):
    drawings = tmp_path / 'images'
    for index, path in enumerate(sorted(folder.glob('*/*.png'))[::8]):
        target = drawings / path.relative_to(folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        content = path.read_bytes()
        target.write_bytes(content[:1500] if index == 3 else b'' if index == 4 else content)
    (drawings / 'striped_disk' / 'notes.txt').write_text('not an image')
    (drawings / 'striped_disk' / 'zzz.jpg').write_text('not an image')
    out = tmp_path / 'attribution.h5'
    for _ in range(2):
        result = run(command('attribute', drawings, *OPTIONS, '--out', out))
        assert result.returncode == 0, result.stderr
        left_out = [line for line in result.stdout.splitlines() if line.startswith('left out')]
        assert len(left_out) == 3 and any('zzz.jpg' in line for line in left_out)
    with h5py.File(out) as file, h5py.File(tmp_path / 'attribution_data.h5') as data:
        names = file['name'].asstr()[:].tolist()
        assert len(names) == len(file['attribution']) == len(data['data']) == 12 - 2
        assert not any(name.endswith('zzz.jpg') for name in names)
        for name, image in zip(names, data['data']):
            assert (image == np.array(Image.open(drawings / name))).all()
    for path in drawings.glob('*/*'):
        path.write_text('no image')
    result = run(command('attribute', drawings, *OPTIONS, '--out', tmp_path / 'none.h5'))
    assert result.returncode != 0 and 'none of the 13 images can be read' in result.stderr.splitlines()[-1]


def test_no_space_on_disk_loses_no_finished_part(folder, finished, tmp_path):
    def limit():  # the attributions as a whole are larger, but a part is not
        resource.setrlimit(resource.RLIMIT_FSIZE, (2 ** 21, 2 ** 21))

    out = tmp_path / 'attribution.h5'
    result = run(command('attribute', folder, *OPTIONS, '--out', out), preexec_fn=limit)
    assert result.returncode not in (0, -signal.SIGXFSZ)
    assert 'attribution.h5 cannot be written' in result.stderr.splitlines()[-1]
    assert not out.exists() and len(list((tmp_path / 'attribution.h5.parts').glob('*.npz'))) == 23
    result = run(command('attribute', folder, *OPTIONS, '--out', out))
    assert result.returncode == 0, result.stderr
    require_same(tmp_path, finished)


@pytest.mark.parametrize('arguments, message', [
    (['missing'], 'no folder missing'),
    (['empty'], 'no image in the folder empty'),
    (['truncated.npz'], 'truncated.npz cannot be read'),
    (['wrong.npz'], 'no array x'),
    (['pickled.npz'], 'pickled.npz cannot be read'),
    (['flat', '--target', 'label'], 'has no label'),
    (['flat', '--target', 'dog'], 'dog'),
    (['flat', '--target', '10'], 'no class 10'),
    (['flat', '--label-regex', '('], 'regular expression'),
    (['flat', '--label-regex', '\\d'], 'no group'),
    (['flat', '--label-regex', '(x)'], 'finds no label'),
    (['unknown'], 'the label \'cat\''),
    (['flat', '--label-map', 'missing.json'], 'missing.json'),
    (['flat', '--label-map', 'short.json'], 'label map'),
    (['flat', '--batch-size', '0'], '0'),
    (['flat', '--method', 'gradcam'], 'gradcam'),
    (['flat', '--layer', 'nowhere'], 'nowhere'),
    (['flat', '--method', 'gradient', '--alpha', '.3'], '--alpha'),
    (['flat', '--out', 'flat/0.png'], '0.png exists'),
])
def test_attribute_with_bad_arguments(tmp_path, arguments, message, monkeypatch, capsys):
    from zennit_dc.cli import main

    monkeypatch.chdir(tmp_path)
    images, _, labels = draw_batch(3, 0)
    for name in ('empty', 'flat', 'unknown/cat'):
        os.makedirs(name)
    Image.fromarray(images[0]).save('flat/0.png')
    Image.fromarray(images[0]).save('unknown/cat/0.png')
    np.savez('whole.npz', x=images, y=labels)
    (tmp_path / 'truncated.npz').write_bytes((tmp_path / 'whole.npz').read_bytes()[:3000])
    np.savez('wrong.npz', images=images)
    np.savez('pickled.npz', x=np.array([{}], object))
    (tmp_path / 'short.json').write_text(json.dumps(label_map(['one'])))
    layer = [] if {'--method', '--layer'} & {*arguments} else ['--layer', 'residual']
    with pytest.raises(SystemExit) as status:
        main(['attribute', *arguments, '--model', 'demo', *layer])
    assert status.value.code not in (0, None)
    error = capsys.readouterr().err.splitlines()
    assert message in error[-1] and error[-1].startswith('zennit-dc: error: ')
    assert not (tmp_path / 'attribution.h5').exists()


def test_arrays_targets_and_channels(tmp_path):
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(1, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(400, 5)
    ).eval()
    classifier = Classifier('own', model, IMAGENET_PREPROCESSING(crop_size=12, resize_size=12, mean=(.5,), std=(.2,)))
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 256, (7, 12, 12), np.uint8), rng.integers(0, 5, 7)
    input = torch.stack([classifier.preprocessing(Image.fromarray(image)) for image in x])
    predicted = model(input).argmax(1)
    for target, explained in (('label', torch.from_numpy(y)), ('predicted', predicted), (3, torch.full((7,), 3))):
        out = tmp_path / f'{target}.h5'
        attribute(classifier, ImageArray(x, y), out, 'splitgrad', target, batch_size=3, progress=False, alpha=.3)
        _, expected = Gradient(model, SplitGrad(.3))(input, class_relevance(explained))
        with h5py.File(out) as file:
            np.testing.assert_allclose(file['attribution'][:].sum(1), expected[:, 0], rtol=1e-5, atol=1e-7)
            assert (file['attribution'][:, :1] == file['attribution'][:]).all()
            assert (file['label'][:] == y).all() and (file['target'][:] == explained.numpy()).all()
        with h5py.File(tmp_path / f'{target}_data.h5') as data:
            assert (data['data'][:] == x[..., None]).all()
    attribute(classifier, ImageArray(x), tmp_path / 'none.h5', 'splitgrad', progress=False)
    with h5py.File(tmp_path / 'none.h5') as file:
        assert (file['label'][:] == predicted.numpy()).all()


def test_labels_of_images(tmp_path):
    for name in ('n01', '2', 'Tiger Cat'):
        (tmp_path / name / 'deeper').mkdir(parents=True)
        Image.new('RGB', (4, 4)).save(tmp_path / name / 'deeper' / 'x_0.png')
    entries = [
        {'index': 0, 'word_net_id': 'n01', 'name': 'tench'}, {'index': 1, 'word_net_id': 'n02', 'name': 'tiger cat'},
        {'index': 2, 'word_net_id': 'n03', 'name': 'crane'}, {'index': 3, 'word_net_id': 'n04', 'name': 'crane'},
    ]
    images = ImageFolder(tmp_path, entries)
    assert dict(zip(images.names, images.labels)) == {
        'n01/deeper/x_0.png': 0, '2/deeper/x_0.png': 2, 'Tiger Cat/deeper/x_0.png': 1
    }
    assert ImageFolder(tmp_path, entries, r'x_(\d)').labels == [0, 0, 0]
    (tmp_path / '2').rename(tmp_path / 'crane')
    with pytest.raises(ValueError, match='several classes'):
        ImageFolder(tmp_path, entries)


def write_attributions(path, maps, labels):
    '''A file of attributions with the given maps.'''
    with h5py.File(path, 'w') as file:
        file['attribution'] = np.repeat(maps[:, None] / 3., 3, 1).astype(np.float32)
        file['prediction'] = np.eye(4, dtype=np.float32)[labels]
        file['label'] = file['target'] = labels
        file.attrs['run'] = json.dumps({'model': 'made up'})
    path.with_name(f'{path.stem}_labels.json').write_text(json.dumps(label_map('abcd')))


@pytest.fixture(name='blobs')
def fixture_blobs(tmp_path):
    '''Maps of two classes, each of two groups with blobs at different places, and three maps of a third class.'''
    rng = np.random.default_rng(0)
    labels, groups = np.array(30 * [0, 1] + 3 * [2]), rng.integers(0, 2, 63)
    maps = .1 * rng.standard_normal((63, 40, 40))
    for map, group in zip(maps, groups):
        row = 5 + 22 * group
        map[row:row + 8, 10:18] += rng.uniform(1., 100.)
    write_attributions(tmp_path / 'attribution.h5', maps, labels)
    return tmp_path, labels, groups


def test_analysis(blobs):
    pytest.importorskip('corelay')
    folder, labels, groups = blobs
    options = {'clusters': (2, 3), 'neighbors': 5, 'progress': False}
    small = analyze(folder / 'attribution.h5', folder / 'analysis.h5', eigenvalues=2, **options)
    assert small == [('00002', 3)]
    with h5py.File(folder / 'analysis.h5') as file:
        assert list(file) == ['00000', '00001']
        for label, name in enumerate(file):
            group = file[name]
            rows = group['index'][:]
            assert (rows == np.flatnonzero(labels == label)).all()
            assert list(group['cluster']) == ['kmeans-02', 'kmeans-03']
            clusters = group['cluster/kmeans-02'][:]
            # the two places are told apart, whatever the maps' scale
            assert len({*zip(clusters, groups[rows])}) == 2
            assert group['embedding/spectral'].shape == (30, 2)
            values = group['embedding/spectral'].attrs['eigenvalue']
            assert (np.diff(values) >= 0.).all() and abs(values[0]) < 1e-8
            for embedding in ('tsne', 'umap'):
                points = group['embedding'][embedding][:]
                assert points.shape == (30, 2) and np.isfinite(points).all() and points.std() > 0.
    analyze(folder / 'attribution.h5', folder / 'all.h5', **options)
    with h5py.File(folder / 'all.h5') as file:
        assert file['00000/embedding/spectral'].shape == (30, 28)
    analyze(folder / 'attribution.h5', folder / 'again.h5', eigenvalues=2, **options)
    assert filecmp.cmp(folder / 'analysis.h5', folder / 'again.h5', shallow=False)
    assert not (folder / 'analysis.h5.parts').exists()


def test_an_analysis_goes_on_where_it_was(blobs, monkeypatch):
    pytest.importorskip('corelay')
    from zennit_dc import analyses

    folder, _, _ = blobs
    original, calls = analyses.spectral_analysis, []

    def interrupted(*args):
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(*args)

    monkeypatch.setattr(analyses, 'spectral_analysis', interrupted)
    options = {'clusters': (2,), 'progress': False}
    with pytest.raises(KeyboardInterrupt):
        analyze(folder / 'attribution.h5', folder / 'analysis.h5', **options)
    with pytest.raises(ValueError, match='another run, which differs in seed'):
        analyze(folder / 'attribution.h5', folder / 'analysis.h5', seed=1, **options)
    analyze(folder / 'attribution.h5', folder / 'analysis.h5', **options)
    assert len(calls) == 3
    analyze(folder / 'attribution.h5', folder / 'whole.h5', **options)
    assert filecmp.cmp(folder / 'analysis.h5', folder / 'whole.h5', shallow=False)


@pytest.mark.parametrize('arguments, message', [
    (['missing.h5'], 'no file missing.h5'),
    (['text.h5'], 'text.h5 is not a file of attributions'),
    (['attribution.h5', '--clusters', '1,2'], 'at least 2'),
    (['attribution.h5', '--clusters', '40'], 'no class has'),
    (['attribution.h5', '--by', 'name'], 'name'),
    (['attribution.h5', '--out', 'text.h5'], 'text.h5 exists'),
])
def test_analyze_with_bad_arguments(blobs, arguments, message, monkeypatch, capsys):
    from zennit_dc.cli import main

    monkeypatch.chdir(blobs[0])
    (blobs[0] / 'text.h5').write_text('no database')
    with pytest.raises(SystemExit) as status:
        main(['analyze', *arguments])
    error = capsys.readouterr().err.splitlines()
    assert status.value.code not in (0, None) and len(error) == 1 and message in error[0]
    assert not (blobs[0] / 'analysis.h5').exists()


def test_project(folder, finished, tmp_path):
    pytest.importorskip('corelay')
    model = pytest.importorskip('virelay.model')
    result = run(
        command('analyze', finished / 'attribution.h5', '--clusters', '2,3', '--out', tmp_path / 'analysis.h5')
    )
    assert result.returncode == 0, result.stderr
    out = tmp_path / 'project.yaml'
    result = run(command('project', finished / 'attribution.h5', tmp_path / 'analysis.h5', '--out', out))
    assert result.returncode == 0 and f'python -m virelay {out}' in result.stdout, result.stderr
    paths = sorted(folder.glob('*/*.png'))
    for data in (None, folder):
        project(finished / 'attribution.h5', tmp_path / 'analysis.h5', out, data=data)
        opened = model.Project(str(out))
        category = opened.get_analysis_categories('Spectral')[3]
        assert category.human_readable_name.replace(' ', '_') == category.name
        analysis = opened.get_analysis('Spectral', category.name, 'kmeans-02', 'tsne')
        assert len(analysis.clustering) == len(analysis.embedding) == 9
        for index in analysis.attribution_indices:
            sample, attribution = opened.get_sample(index), opened.get_attribution(index)
            assert (sample.data == np.array(Image.open(paths[index]))).all()
            assert sample.labels[0].word_net_id == attribution.labels[0].word_net_id == paths[index].parent.name
            assert attribution.data.shape == (64, 64, 3)
            for superimposed in (None, sample.data):
                assert attribution.render_heatmap('black-fire-red', superimposed).shape == (64, 64, 3)
        opened.close()


def test_project_with_bad_arguments(blobs, folder, finished, tmp_path):
    pytest.importorskip('corelay')
    out = tmp_path / 'project.yaml'
    with pytest.raises(ValueError, match='no file'):
        project(tmp_path / 'missing.h5', tmp_path / 'analysis.h5', out)
    analyze(tmp_path / 'attribution.h5', tmp_path / 'analysis.h5', clusters=(2,), progress=False)
    with pytest.raises(ValueError, match='not an analysis of'):
        project(finished / 'attribution.h5', tmp_path / 'analysis.h5', out)
    with pytest.raises(ValueError, match='not files of attributions'):
        project(tmp_path / 'attribution.h5', tmp_path / 'analysis.h5', out)  # without names
    analyze(finished / 'attribution.h5', tmp_path / 'other.h5', clusters=(2,), progress=False)
    with pytest.raises(ValueError, match='no file or folder'):
        project(finished / 'attribution.h5', tmp_path / 'other.h5', out, data=tmp_path / 'nowhere')
    with pytest.raises(ValueError, match='use the HDF5 file'):
        project(finished / 'attribution.h5', tmp_path / 'other.h5', out, data=folder, labels=swapped_labels(tmp_path))
    assert not out.exists()


def swapped_labels(folder):
    '''A label map with other WordNet IDs.'''
    path = folder / 'swapped.json'
    path.write_text(json.dumps(label_map(CLASSES)))
    assert load_label_map(path)[1]['word_net_id'] == '00001'
    return path
