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

from zennit_dc import SmoothReplacement, SplitCAM, SplitGrad
from zennit_dc.attribution import class_relevance
from zennit_dc.demo import CLASSES, draw_batch
from zennit_dc.demo.report import save_drawings
from zennit_dc.images import ImageArray, ImageFolder, UnreadableImage, label_map, load_label_map, read_image
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
    assert kills[0][1] > 0 or kills[0][2], kills
    result = run(command('attribute', folder, *OPTIONS, '--out', out))
    assert result.returncode == 0, result.stderr
    require_same(tmp_path, finished)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(FILES), kills


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
    (['flat', '--method', 'perceptron'], 'perceptron'),
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


@pytest.fixture(name='few')
def fixture_few(tmp_path):
    '''A folder with four drawings, and the arguments of a run over them.'''
    save_drawings(tmp_path, *draw_batch(4, 5))
    return tmp_path, (load_classifier('demo'), ImageFolder(tmp_path / 'images', label_map(CLASSES)))


def test_parts_of_another_run_are_never_used(few, monkeypatch):
    folder, run = few
    out, parts = folder / 'a.h5', folder / 'a.h5.parts'
    options = {'layer': 'residual', 'batch_size': 2, 'progress': False}

    def fail(*args):
        raise KeyboardInterrupt

    from zennit_dc import attributions

    with monkeypatch.context() as patch:
        patch.setattr(attributions, 'merge', fail)
        with pytest.raises(KeyboardInterrupt):
            attribute(*run, out, alpha=.1, **options)
    assert len(list(parts.glob('*.npz'))) == 2
    with pytest.raises(ValueError, match='another run, which differs in alpha'):
        attribute(*run, out, alpha=.4, **options)
    (parts / 'run.json').unlink()  # as if it had been killed while it removed the folder
    attribute(*run, out, alpha=.4, **options)
    attribute(*run, folder / 'b.h5', alpha=.4, **options)
    assert filecmp.cmp(out, folder / 'b.h5', shallow=False)


def test_a_run_that_failed_at_once_can_be_corrected(few):
    folder, run = few
    with pytest.raises(ValueError, match='no class 10'):
        attribute(*run, folder / 'a.h5', layer='residual', target=10, progress=False)
    assert attribute(*run, folder / 'a.h5', layer='residual', target=np.int64(1), progress=False) == []


def test_other_pixels_or_parameters_are_another_run(few):
    folder, (classifier, images) = few
    out, options = folder / 'a.h5', {'method': 'splitgrad', 'progress': False, 'canonizers': [SmoothReplacement()]}
    attribute(classifier, images, out, alpha=lambda name: .1, **options)
    before = out.stat().st_mtime_ns
    attribute(classifier, images, out, alpha=lambda name: .1, **options)  # with the same canonizer, after it was used
    assert out.stat().st_mtime_ns == before
    with pytest.raises(ValueError, match='alpha'):
        attribute(classifier, images, out, alpha=lambda name: .4, **options)
    options['canonizers'] = [SmoothReplacement(tolerance=.1)]
    with pytest.raises(ValueError, match='canonizers'):
        attribute(classifier, images, out, alpha=lambda name: .1, **options)
    save_drawings(folder, *draw_batch(4, 6))
    with pytest.raises(ValueError, match='images'):
        attribute(classifier, images, out, **options)
    attribute(classifier, images, folder / 'double.h5', 'splitgrad', dtype=torch.float64, progress=False)
    attribute(classifier, images, folder / 'double.h5', 'splitgrad', dtype=torch.float64, progress=False)


def test_errors_of_the_disk_are_not_errors_of_an_image(few):
    folder, (classifier, images) = few

    class Vanishing(ImageFolder):
        def image(self, index, mode='RGB'):
            if index == 2:
                self.folder.rename(folder / 'elsewhere')
            return super().image(index, mode)

    vanishing = Vanishing(images.folder, label_map(CLASSES))
    with pytest.raises(OSError, match='No such file'):
        attribute(classifier, vanishing, folder / 'a.h5', layer='residual', batch_size=1, progress=False)
    (folder / 'elsewhere').rename(images.folder)
    assert attribute(classifier, images, folder / 'a.h5', layer='residual', batch_size=1, progress=False) == []


def test_files_of_others_are_not_overwritten(few):
    folder, run = few
    (folder / 'a_data.h5').write_text('mine')
    with pytest.raises(ValueError, match='a_data.h5 exists'):
        attribute(*run, folder / 'a.h5', layer='residual', progress=False)
    for name in ('q0.3', 'q0.4'):
        attribute(*run, folder / name, layer='residual', progress=False)
        assert (folder / f'{name}_data.h5').is_file()


def test_images_of_all_kinds(tmp_path):
    ramp = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
    Image.fromarray(ramp).save(tmp_path / '16.png')
    assert np.abs(np.array(read_image(tmp_path / '16.png', 'L'), int) - (ramp >> 8)).max() <= 1
    Image.fromarray(ramp.astype(np.float32)).save(tmp_path / 'float.tif')
    with pytest.raises(UnreadableImage, match='mode F'):
        read_image(tmp_path / 'float.tif')
    Image.new('L', (1, 1000)).save(tmp_path / 'long.png')
    with pytest.raises(UnreadableImage, match='1 × 1000'):
        read_image(tmp_path / 'long.png')
    for mode, ending in (('1', 'png'), ('P', 'png'), ('LA', 'png'), ('RGBA', 'png'), ('CMYK', 'jpg'), ('YCbCr', 'jpg')):
        path = tmp_path / f'{mode}.{ending}'
        Image.new('RGB', (8, 8), (255, 0, 0)).convert(mode).save(path)
        assert read_image(path).mode == 'RGB'
    (tmp_path / 'loop').symlink_to(tmp_path)
    (tmp_path / '.hidden').mkdir()
    (tmp_path / '.hidden' / 'x.png').touch()
    assert len(ImageFolder(tmp_path, []).names) == 9


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
    small = analyze(folder / 'attribution.h5', folder / 'analysis.h5', **options)
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
            assert group['embedding/spectral'].shape == (30, 28)
            values = group['embedding/spectral'].attrs['eigenvalue']
            assert (np.diff(values) >= 0.).all() and abs(values[0]) < 1e-8
            for embedding in ('tsne', 'umap'):
                points = group['embedding'][embedding][:]
                assert points.shape == (30, 2) and np.isfinite(points).all() and points.std() > 0.
    analyze(folder / 'attribution.h5', folder / 'again.h5', **options)
    assert filecmp.cmp(folder / 'analysis.h5', folder / 'again.h5', shallow=False)
    assert analyze(folder / 'attribution.h5', folder / 'again.h5', **options) == small
    with pytest.raises(ValueError, match='differs in seed'):
        analyze(folder / 'attribution.h5', folder / 'again.h5', seed=1, **options)
    assert not (folder / 'analysis.h5.parts').exists()


def test_equal_maps_are_one_cluster(tmp_path):
    pytest.importorskip('corelay')
    maps = np.random.default_rng(0).standard_normal((3, 20, 20)).repeat(20, 0)
    write_attributions(tmp_path / 'attribution.h5', maps, np.zeros(60, int))
    analyze(tmp_path / 'attribution.h5', tmp_path / 'analysis.h5', clusters=(3,), progress=False)
    with h5py.File(tmp_path / 'analysis.h5') as file:
        clusters = file['00000/cluster/kmeans-03'][:]
    assert len({*zip(clusters, np.arange(60) // 20)}) == 3
    write_attributions(tmp_path / 'zero.h5', 0. * maps, np.zeros(60, int))
    analyze(tmp_path / 'zero.h5', tmp_path / 'of_zero.h5', clusters=(2,), progress=False)
    with h5py.File(tmp_path / 'of_zero.h5') as file:
        assert np.isfinite(file['00000/embedding/umap'][:]).all()


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
    (['unknown.h5'], 'class 1 is not in the label map'),
    (['twice.h5'], 'several classes with the word_net_id'),
    (['bare.h5'], 'bare.h5 is not a file of attributions'),
])
def test_analyze_with_bad_arguments(blobs, arguments, message, monkeypatch, capsys):
    from zennit_dc.cli import main

    monkeypatch.chdir(blobs[0])
    (blobs[0] / 'text.h5').write_text('no database')
    for name in ('unknown', 'twice', 'bare'):
        write_attributions(blobs[0] / f'{name}.h5', np.ones((40, 8, 8)), np.arange(40) % 2)
    entries = label_map('ab')
    (blobs[0] / 'unknown_labels.json').write_text(json.dumps(entries[:1]))
    entries[1]['word_net_id'] = entries[0]['word_net_id']
    (blobs[0] / 'twice_labels.json').write_text(json.dumps(entries))
    with h5py.File(blobs[0] / 'bare.h5', 'a') as file:
        del file.attrs['run']
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
    with pytest.raises(ValueError, match='do not lie in folders'):
        project(finished / 'attribution.h5', tmp_path / 'other.h5', out, data=folder, labels=swapped_labels(tmp_path))
    assert not out.exists()


def swapped_labels(folder):
    '''A label map with other WordNet IDs.'''
    path = folder / 'swapped.json'
    path.write_text(json.dumps(label_map(CLASSES)))
    assert load_label_map(path)[1]['word_net_id'] == '00001'
    return path
