'''Projects of ViRelAy.'''
import json

import numpy as np
import pytest
from PIL import Image

from zennit_dc.data.images import label_map, load_label_map
from zennit_dc.demo import CLASSES
from zennit_dc.virelay import analyze, project


h5py = pytest.importorskip('h5py', reason='the extra "virelay" is not installed')
pytest.importorskip('corelay', reason='the extra "virelay" is not installed')


@pytest.mark.slow(25)
def test_project(dataset, attributed, project_file, tmp_path):
    model = pytest.importorskip('virelay.model')
    paths = sorted(dataset.glob('*/*.png'))
    out = tmp_path / 'project.yaml'
    for data in (None, dataset):
        project(attributed / 'attribution.h5', attributed / 'analysis.h5', out, data=data)
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


def test_project_with_bad_arguments(blobs, dataset, attributed, tmp_path):
    out = tmp_path / 'project.yaml'
    with pytest.raises(ValueError, match='no file'):
        project(tmp_path / 'missing.h5', tmp_path / 'analysis.h5', out)
    analyze(tmp_path / 'attribution.h5', tmp_path / 'analysis.h5', clusters=(2,), progress=False)
    with pytest.raises(ValueError, match='not an analysis of'):
        project(attributed / 'attribution.h5', tmp_path / 'analysis.h5', out)
    with pytest.raises(ValueError, match=r'attribution\.h5 is not an analysis of .*attribution\.h5$'):
        project(attributed / 'attribution.h5', attributed / 'attribution.h5', out)
    with pytest.raises(ValueError, match='not files of attributions'):
        project(tmp_path / 'attribution.h5', tmp_path / 'analysis.h5', out)  # without names
    with h5py.File(tmp_path / 'list.h5', 'w') as file:
        file.attrs['run'] = '[]'
    with pytest.raises(ValueError, match='not files of attributions'):
        project(attributed / 'attribution.h5', tmp_path / 'list.h5', out)
    analyze(attributed / 'attribution.h5', tmp_path / 'other.h5', clusters=(2,), progress=False)
    with pytest.raises(ValueError, match='no file or folder'):
        project(attributed / 'attribution.h5', tmp_path / 'other.h5', out, data=tmp_path / 'nowhere')
    swapped = swapped_labels(tmp_path)
    with pytest.raises(ValueError, match='do not lie in folders'):
        project(attributed / 'attribution.h5', tmp_path / 'other.h5', out, data=dataset, labels=swapped)
    assert not out.exists()


def swapped_labels(folder):
    '''A label map with other WordNet IDs.'''
    path = folder / 'swapped.json'
    path.write_text(json.dumps(label_map(CLASSES)))
    assert load_label_map(path)[1]['word_net_id'] == '00001'
    return path
