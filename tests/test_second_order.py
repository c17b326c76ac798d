'''The example of CAFO and CASO, with a small network.'''
import pytest
import torch
from group_features import NETWORKS, images
from torch import nn


pd = pytest.importorskip('pandas', reason='the extra "evaluation" is not installed')
second_order = pytest.importorskip('second_order')

MODEL = NETWORKS['CNN']().float()


class Same(nn.Module):
    '''The model, as one of pixels.'''
    def __init__(self):
        super().__init__()
        self.model = MODEL

    def forward(self, x):
        return self.model(x)

    def pixels(self, input):
        return input


def test_confidence():
    table = second_order.confidence_table(MODEL, torch.cat([images(seed).float() for seed in range(3)]), Same().eval())
    assert len(table) == 9 and ((table['confidence'] > 0.) & (table['confidence'] < 1.)).all()
    assert (table[['L', 'λ_2', 'λ_3', 'λ_4']].diff(axis=1).iloc[:, 1:] <= 0.).all(axis=None)
    assert table['cos(g, u_1)'].between(0., 1.0001).all() and (table[['margin', 'article']] >= 0.).all(axis=None)
    binned = second_order.binned(table)
    assert binned['images'][:4].sum() == 9 == binned['images'][4]
    assert len(second_order.confidence_figure(table).axes) == 2


def test_a_hessian_of_rank_one():
    table = second_order.rank_one_table()
    assert (table['p_y/s ggᵀ, p_y = 0.999'] / table['1/√min(d, c)']).between(.75, 1.5).all()
    assert (table['p_y/s ggᵀ, p_y = 0.5'] < table['ggᵀ/s, p_y = 0.5']).all()


def test_sparsity_and_copies():
    input = images().float()
    table = second_order.path_table(MODEL, input)
    assert table['overlap of supports'].max() <= 1. and table['λ_max / L'].max() <= 1.0001
    over_shares = second_order.over_shares(table)
    ordered = over_shares[[f'cosine, {kind}' for kind in ('min', 'median', 'max')]]
    assert len(over_shares) == len(second_order.SHARES) and (ordered.diff(axis=1).iloc[:, 1:] >= 0.).all(axis=None)
    copies = second_order.copies_table(MODEL, input, n_iter=5)
    assert len(copies) == 3 * len(input) and copies['misclassified copies'].between(0., .8).all()
    assert (copies['their weight'] >= copies['misclassified copies']).all()  # whose 1 - p is larger


@pytest.mark.slow(3)
def test_cost():
    table = second_order.cost_table(MODEL, images().float()[:2])
    assert isinstance(table, pd.DataFrame) and list(table['method']) == list(second_order.COSTS)
    assert (table[['least', 'median', 'most']].diff(axis=1).iloc[:, 1:] >= 0.).all(axis=None)
