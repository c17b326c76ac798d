'''The example that compares two ways to explain smooth activations.'''
import compare_activations
import pandas as pd
import pytest
import torch
from click.testing import CliRunner

from zennit_dc.demo import demo_preprocessing, draw_batch
from zennit_dc.evaluation.pages import save_csv


@pytest.mark.parametrize('kind', compare_activations.NETWORKS)
def test_scores(kind, tmp_path):
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
        name: compare_activations.largest_deviation(network, images, option)
        for name, option in compare_activations.CANONIZERS.items()
    }
    assert deviations[name] == 0.
    rows = [row for seed in (0, 1) for row in compare_activations.rows_of(kind, seed, found, deviations, .5)]
    means = compare_activations.averaged(pd.DataFrame(rows, columns=compare_activations.COLUMNS))
    assert (means['pointing game, error'] == 0.).all() and len(means) == len(found)
    save_csv(tmp_path / 'means.csv', means)
    table, = compare_activations.parts(tmp_path).values()
    assert table.count('\n') == 1 + len(compare_activations.METHODS)


def test_command(tmp_path):
    result = CliRunner().invoke(compare_activations.main, ['--out', str(tmp_path / 'none' / 'out')])
    assert result.exit_code == 1 and 'there is no folder' in result.stderr
