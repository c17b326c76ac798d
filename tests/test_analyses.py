'''Clusters and embeddings of attributions.'''
import filecmp
import json

import numpy as np
import pytest
from commands import require_error, run
from databases import write_attributions

from zennit_dc.data.images import label_map
from zennit_dc.virelay import analyses, analyze


h5py = pytest.importorskip('h5py', reason='the extra "virelay" is not installed')
pytest.importorskip('corelay', reason='the extra "virelay" is not installed')


@pytest.mark.slow(15)
def test_analysis(blobs):
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
def test_analyze_with_bad_arguments(blobs, arguments, message, monkeypatch):
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
    require_error(run('analyze', *arguments), message)
    assert not (blobs[0] / 'analysis.h5').exists()
