'''The example that compares two ways to explain smooth activations.'''
import compare_activations
import pytest
import torch
from click.testing import CliRunner

from zennit_dc.demo import demo_preprocessing, draw_batch


@pytest.mark.parametrize('kind', compare_activations.NETWORKS)
def test_scores(kind):
    torch.manual_seed(0)
    network = compare_activations.NETWORKS[kind]().eval()
    pictures, masks, labels = draw_batch(2, 3)
    images = demo_preprocessing()(torch.from_numpy(pictures).permute(0, 3, 1, 2))
    found = compare_activations.scores(network, images, torch.from_numpy(masks), torch.from_numpy(labels))
    assert len(found) == len(compare_activations.METHODS) * len(compare_activations.CANONIZERS)
    assert all(0. <= hits <= 1. and -1. <= agreement <= 1.0001 for hits, agreement in found.values())
    # what is constant does not depend on alpha
    name, = [name for name in compare_activations.CANONIZERS if name.startswith('Detached')]
    assert found['SplitGrad, input', name] == found['SplitGrad, input, α = 0.4', name]
    deviations = {
        name: [compare_activations.largest_deviation(network, images, option)]
        for name, option in compare_activations.CANONIZERS.items()
    }
    lines = '\n'.join(compare_activations.table(kind, [found, found], deviations))
    assert '± 0.000' in lines and f'{name} 0.00%' in lines


def test_command(tmp_path):
    result = CliRunner().invoke(compare_activations.main, ['--out', str(tmp_path / 'none' / 'out.md')])
    assert result.exit_code == 1 and 'there is no folder' in result.stderr
