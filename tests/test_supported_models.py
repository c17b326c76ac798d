'''Every model of torchvision that is not too large, by the script that makes the README's table.'''
import sys
import warnings
from pathlib import Path

import pytest
import torchvision

sys.path.insert(0, str(Path(__file__).parents[1] / 'examples'))
import supported_models  # noqa: E402

MODELS = [(name, family) for family in supported_models.FAMILIES for name in supported_models.models_of(family)]
# more than this many parameters take minutes or more memory than a small machine has; larger models have the same parts
LARGEST = 6e7


@pytest.mark.parametrize('name, family', MODELS)
def test_model(name, family):
    weights = torchvision.models.get_model_weights(name)
    if min(weight.meta['num_params'] for weight in weights) > LARGEST or name in ('mvit_v1_b', 'mvit_v2_s', 's3d'):
        pytest.skip('too large or slow for a test: examples/supported_models.py runs it')
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        row = supported_models.examine(name, family)
    assert row[3:] == ['yes'] * 3
    if row[1].startswith('exact') or row[1] == 'constants':
        assert row[2] == 'bit-identical'
