'''Made-up files of attributions.'''
import json

import numpy as np

from zennit_dc.data.images import label_map


def write_attributions(path, maps, labels):
    '''A file of attributions with the given maps.'''
    import h5py

    with h5py.File(path, 'w') as file:
        file['attribution'] = np.repeat(maps[:, None] / 3., 3, 1).astype(np.float32)
        file['prediction'] = np.eye(4, dtype=np.float32)[labels]
        file['label'] = file['target'] = labels
        file.attrs['run'] = json.dumps({'model': 'made up'})
    path.with_name(f'{path.stem}_labels.json').write_text(json.dumps(label_map('abcd')))
