'''Attributions of data sets: runs that can be killed, resumed and shared.'''
import filecmp
import json
import os
import resource
import signal

import numpy as np
import pytest
import torch
from commands import ATTRIBUTE, require_error, require_success, run, run_process, run_processes
from helpers import assert_close, rounding
from PIL import Image
from processes import end_at
from zennit.attribution import Gradient

from zennit_dc import SmoothReplacement, SplitCAM, SplitGrad
from zennit_dc.attribution import class_relevance
from zennit_dc.cli.report import save_drawings
from zennit_dc.data.classifiers import IMAGENET_PREPROCESSING, Classifier, load_classifier
from zennit_dc.data.images import ImageArray, ImageFolder, label_map
from zennit_dc.data.parts import Parts, held
from zennit_dc.demo import CLASSES, draw_batch
from zennit_dc.virelay import attribute, attributions


h5py = pytest.importorskip('h5py', reason='the extra "virelay" is not installed')

FILES = ('attribution.h5', 'attribution_data.h5', 'attribution_labels.json')


def require_same(first, second):
    for name in FILES:
        assert filecmp.cmp(first / name, second / name, shallow=False), name


def test_attributions_of_a_folder(dataset, attributed):
    classifier = load_classifier('demo')
    paths = sorted(dataset.glob('*/*.png'))
    with h5py.File(attributed / 'attribution.h5') as file, h5py.File(attributed / 'attribution_data.h5') as data:
        assert file['attribution'].shape == (90, 3, 64, 64) and file['attribution'].dtype == np.float32
        assert file['name'].asstr()[:].tolist() == [path.relative_to(dataset).as_posix() for path in paths]
        assert json.loads(file.attrs['run'])['layer'] == 'residual'
        for row in (0, 41, 89):
            image = Image.open(paths[row])
            output, attribution = Gradient(classifier.model, SplitCAM('residual'))(
                classifier.preprocessing(image)[None], class_relevance()
            )
            tolerance = rounding(classifier.model, classifier.preprocessing(image)[None], unit=output.argmax())
            assert_close(torch.from_numpy(file['attribution'][row]), attribution[0].detach(), tolerance)
            assert_close(torch.from_numpy(file['prediction'][row]), output[0].detach(), tolerance)
            assert file['target'][row] == output.argmax()
            assert file['label'][row] == data['label'][row]
            assert CLASSES[file['label'][row]] == paths[row].parent.name.replace('_', ' ')
            assert (data['data'][row] == np.array(image)).all()
    entries = json.loads((attributed / 'attribution_labels.json').read_text())
    assert [(entry['index'], entry['name']) for entry in entries] == list(enumerate(CLASSES))
    assert {entry['word_net_id'] for entry in entries} == {path.parent.name for path in paths}


def test_a_finished_run_is_not_run_again(dataset, attributed):
    before = [(attributed / name).stat().st_mtime_ns for name in FILES]
    again = ('attribute', dataset, *ATTRIBUTE, '--out', attributed / 'attribution.h5')
    result = run(*again)
    require_success(result)
    assert '90 images' in result.stdout
    assert before == [(attributed / name).stat().st_mtime_ns for name in FILES]
    require_error(run(*again, '--alpha', .3), 'alpha')


@pytest.mark.slow(5)
def test_resume_after_a_kill_at_each_step(few, tmp_path):
    '''By SIGKILL, before a file takes its place or is removed: the first run at the first time, the second one at the
    second time, and so on.'''
    folder, _ = few
    out, whole, kills = tmp_path / 'killed' / 'attribution.h5', tmp_path / 'whole', []
    whole.mkdir(), out.parent.mkdir()
    options = ('attribute', folder / 'images', *ATTRIBUTE[:-1], 1)
    require_success(run(*options, '--out', whole / 'attribution.h5'))
    for number in range(1, 60):
        result = run_process(*options, '--out', out, prepare=(end_at, number, 'replace', 'unlink', 'rmdir'))
        if result.returncode == 0:
            break
        assert result.returncode == -signal.SIGKILL, result.stderr
        kills.append({path.name for path in out.parent.rglob('*')})
    parts = {f'{index:06d}.npz' for index in range(4)}
    assert any(0 < len(parts & names) < 4 for names in kills), kills
    assert any('attribution.h5' in names and parts & names for names in kills), kills
    require_same(out.parent, whole)
    assert sorted(path.name for path in out.parent.iterdir()) == sorted(FILES), kills


@pytest.mark.slow(12)
def test_two_processes_make_the_same_files(dataset, attributed, tmp_path):
    result = run_processes('attribute', dataset, *ATTRIBUTE, '--out', tmp_path / 'attribution.h5')
    require_success(result)
    assert result.stdout.count('90 images') == 1
    require_same(tmp_path, attributed)


def test_processes_that_read_images(dataset, attributed, tmp_path):
    require_success(run('attribute', dataset, *ATTRIBUTE, '--workers', 2, '--out', tmp_path / 'attribution.h5'))
    require_same(tmp_path, attributed)


def test_shards_make_the_same_files(dataset, attributed, tmp_path):
    '''In any order, once or twice, with one that was not run, and one that was interrupted.'''
    command = ('attribute', dataset, *ATTRIBUTE, '--out', tmp_path / 'attribution.h5')
    require_error(run(*command, '--join'), '23 of 23 parts', 'from 1/n to n/n')
    for shard in ('3/3', '1/3', '3/3'):
        result = run(*command, '--shard', shard)
        require_success(result)
        assert f'shard {shard} is done' in result.stdout
    folder = tmp_path / 'attribution.h5.shard-3-of-3.parts'
    assert [path.name for path in sorted(folder.glob('*.npz'))] == [f'{number:06d}.npz' for number in range(2, 23, 3)]
    require_error(run(*command, '--join'), '8 of 23 parts', 'run --shard 2/3')
    (folder / '000005.npz').unlink()
    require_success(run(*command, '--shard', '2/3'))
    require_error(run(*command, '--join'), '1 of 23 parts', 'run --shard 3/3')
    require_error(run(*command, '--shard', '3/3', '--alpha', .3), 'another run, which differs in alpha')
    with held(folder, folder / 'lock'):
        require_error(run(*command, '--shard', '3/3'), f'another run (process {os.getpid()}) writes to {folder}')
    require_success(run(*command, '--shard', '3/3'))
    with held(folder, folder / 'lock'):
        require_error(run(*command, '--join'), f'another run (process {os.getpid()}) writes to {folder}')
    require_success(run(*command, '--join'))
    require_same(tmp_path, attributed)
    for again in ('--join', '--shard=2/3'):
        result = run(*command, again)
        require_success(result)
        assert '90 images' in result.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(FILES)


def test_a_run_goes_on_with_what_shards_have_left(dataset, attributed, tmp_path):
    command = ('attribute', dataset, *ATTRIBUTE, '--out', tmp_path / 'attribution.h5')
    for shard in ('2/4', '17/40'):
        require_success(run(*command, '--shard', shard))
    require_success(run(*command))
    require_same(tmp_path, attributed)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(FILES)


@pytest.mark.parametrize('shard', ['0/2', '3/2', '2', '/', '1/0', '-1/2', '1/2/3', 'a/b', '1.0/2'])
def test_wrong_shards(shard, tmp_path):
    result = run('attribute', tmp_path, *ATTRIBUTE, '--shard', shard)
    require_error(result, repr(shard), 'is no shard: 1/8 is the first of eight')
    with pytest.raises(ValueError, match='i-th of n'):
        attribute(load_classifier('demo'), None, tmp_path / 'a.h5', layer='residual', shard=(0, 2))


def test_a_shard_joins_nothing(tmp_path):
    require_error(run('attribute', tmp_path, *ATTRIBUTE, '--shard', '1/2', '--join'), '--join', 'without --shard')


def test_an_interrupted_shard_goes_on(few, monkeypatch):
    folder, run = few
    explain_batch, explained = attributions.explain_batch, []

    def interrupted(*args):
        if len(explained) == 1:
            raise KeyboardInterrupt
        explained.append(explain_batch(*args))
        return explained[-1]

    options = {'layer': 'residual', 'batch_size': 1, 'progress': False}
    parts = folder / 'a.h5.shard-1-of-2.parts'
    with monkeypatch.context() as patch:
        patch.setattr(attributions, 'explain_batch', interrupted)
        with pytest.raises(KeyboardInterrupt):
            attribute(*run, folder / 'a.h5', shard=(1, 2), **options)
    assert [path.name for path in parts.glob('*.npz')] == ['000000.npz']
    assert not run[0].model.residual._forward_hooks and 'forward' not in vars(run[0].model)
    for shard in ((1, 2), (2, 2)):
        attribute(*run, folder / 'a.h5', shard=shard, **options)
    (parts / 'run.json').unlink()  # as if it had been killed while it was removed
    with pytest.raises(ValueError, match='2 of 4 parts .* run --shard 1/2'):
        attribute(*run, folder / 'a.h5', join=True, **options)
    attribute(*run, folder / 'a.h5', shard=(1, 2), **options)
    attribute(*run, folder / 'a.h5', join=True, **options)
    attribute(*run, folder / 'b.h5', **options)
    assert filecmp.cmp(folder / 'a.h5', folder / 'b.h5', shallow=False)


def test_shards_report_their_own_images(few):
    folder, (classifier, images) = few
    for index in (0, 3):
        (images.folder / images.names[index]).write_text('not an image')
    options = {'layer': 'residual', 'batch_size': 1, 'progress': False}
    for shard, index in ((1, 0), (2, 3)):
        skipped = attribute(classifier, images, folder / 'a.h5', shard=(shard, 2), **options)
        assert [name for name, _ in skipped] == [images.names[index]]
    skipped = attribute(classifier, images, folder / 'a.h5', join=True, **options)
    assert [name for name, _ in skipped] == [images.names[index] for index in (0, 3)]


def test_errors_of_what_reads_and_writes_are_raised(few, monkeypatch):
    '''By the thread or the process, with what was done before.'''
    folder, (classifier, images) = few
    options = {'layer': 'residual', 'batch_size': 1, 'progress': False}

    def full(parts, number, /, **arrays):
        raise OSError(28, 'No space left on device')

    with monkeypatch.context() as patch:
        patch.setattr(Parts, 'save', full)
        with pytest.raises(OSError, match='No space'):
            attribute(classifier, images, folder / 'a.h5', **options)

    def broken(self, index, mode):
        if index == 2:
            raise OSError(5, 'Input/output error')
        return ImageFolder.image(images, index, mode)

    broken_images = type('Broken', (ImageFolder,), {'image': broken})(images.folder, label_map(CLASSES))
    for workers in (0, 1):
        with pytest.raises(OSError, match='Input/output error') as error:
            attribute(classifier, broken_images, folder / 'a.h5', workers=workers, **options)
        assert 'Traceback' not in str(error.value)
    assert len(list((folder / 'a.h5.parts').glob('*.npz'))) == 2


def test_unreadable_images_are_left_out(dataset, tmp_path):
    folder = tmp_path / 'images'
    for index, path in enumerate(sorted(dataset.glob('*/*.png'))[::8]):
        target = folder / path.relative_to(dataset)
        target.parent.mkdir(parents=True, exist_ok=True)
        content = path.read_bytes()
        target.write_bytes(content[:1500] if index == 3 else b'' if index == 4 else content)
    (folder / 'striped_disk' / 'notes.txt').write_text('not an image')
    (folder / 'striped_disk' / 'zzz.jpg').write_text('not an image')
    out = tmp_path / 'attribution.h5'
    for _ in range(2):
        result = run('attribute', folder, *ATTRIBUTE, '--out', out)
        require_success(result)
        left_out = [line for line in result.stdout.splitlines() if line.startswith('left out')]
        assert len(left_out) == 3 and any('zzz.jpg' in line for line in left_out)
    with h5py.File(out) as file, h5py.File(tmp_path / 'attribution_data.h5') as data:
        names = file['name'].asstr()[:].tolist()
        assert len(names) == len(file['attribution']) == len(data['data']) == 12 - 2
        assert not any(name.endswith('zzz.jpg') for name in names)
        for name, image in zip(names, data['data']):
            assert (image == np.array(Image.open(folder / name))).all()
    for path in folder.glob('*/*'):
        path.write_text('no image')
    result = run('attribute', folder, *ATTRIBUTE, '--out', tmp_path / 'none.h5')
    assert result.returncode != 0 and 'none of the 13 images can be read' in result.stderr.splitlines()[-1]


@pytest.mark.slow(5)
def test_no_space_on_disk_loses_no_finished_part(dataset, attributed, tmp_path):
    # the attributions as a whole are larger, but a part is not
    limit = resource.setrlimit, resource.RLIMIT_FSIZE, (2 ** 21, 2 ** 21)
    out = tmp_path / 'attribution.h5'
    result = run_process('attribute', dataset, *ATTRIBUTE, '--out', out, prepare=limit)
    assert result.returncode not in (0, -signal.SIGXFSZ)
    assert 'attribution.h5 cannot be written' in result.stderr.splitlines()[-1]
    assert not out.exists() and len(list((tmp_path / 'attribution.h5.parts').glob('*.npz'))) == 23
    require_success(run('attribute', dataset, *ATTRIBUTE, '--out', out))
    require_same(tmp_path, attributed)


@pytest.mark.parametrize('arguments, message', [
    (['missing'], 'no folder missing'),
    (['empty'], 'no image in the folder empty'),
    (['truncated.npz'], 'truncated.npz cannot be read'),
    (['wrong.npz'], 'no array x'),
    (['pickled.npz'], 'pickled.npz cannot be read'),
    (['flat', '--target', 'label'], 'has no label'),
    (['flat', '--target', 'dog'], 'dog'),
    (['flat', '--target', '10'], 'no class 10'),
    (['flat', '--target', '9' * 30], 'no class 999'),
    (['https://example.org/images'], 'https://example.org/images is a URL'),
    (['flat', '--label-map', 'short.json', '--out', 'short.json'], 'overwrite the input'),
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
def test_attribute_with_bad_arguments(tmp_path, arguments, message, monkeypatch):
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
    result = run('attribute', *arguments, '--model', 'demo', *layer)
    assert result.returncode not in (0, None)
    error = result.stderr.splitlines()[-1]
    assert message in error and error.startswith('zennit-dc: error: ')
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
            tolerance = max(rounding(model, each[None], unit=unit) for each, unit in zip(input, explained))
            assert_close(torch.from_numpy(file['attribution'][:].sum(1)), expected[:, 0], tolerance)
            assert (file['attribution'][:, :1] == file['attribution'][:]).all()
            assert (file['label'][:] == y).all() and (file['target'][:] == explained.numpy()).all()
        with h5py.File(tmp_path / f'{target}_data.h5') as data:
            assert (data['data'][:] == x[..., None]).all()
    attribute(classifier, ImageArray(x), tmp_path / 'none.h5', 'splitgrad', progress=False)
    with h5py.File(tmp_path / 'none.h5') as file:
        assert (file['label'][:] == predicted.numpy()).all()


@pytest.mark.parametrize('target', [3, 'label'])
def test_maps_are_those_of_single_images(few, target):
    folder, (classifier, images) = few
    images.labels = [2, 0, 2, 0]
    attribute(classifier, images, folder / 'a.h5', 'splitgrad', target, batch_size=2, alpha=.4, progress=False)
    with h5py.File(folder / 'a.h5') as file:
        found = torch.from_numpy(file['attribution'][:])
        assert file['target'][:].tolist() == (images.labels if target == 'label' else [3] * 4)
    attributor = Gradient(classifier.model, SplitGrad(.4))
    for index, map in enumerate(found):
        input = classifier.preprocessing(images.image(index))[None]
        label = images.labels[index] if target == 'label' else target
        expected = attributor(input, class_relevance(label))[1][0]
        assert_close(map, expected, rounding(classifier.model, input, unit=label))
