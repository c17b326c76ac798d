'''The bridge to Quantus against attributors, and against Quantus' own calls.'''
import importlib.util
from functools import partial

import numpy as np
import pytest
import torch
from zennit.attribution import Gradient

from zennit_dc import SplitCAM
from zennit_dc.attribution import LayerCAM, Sparsity, class_relevance
from zennit_dc.data.classifiers import Classifier
from zennit_dc.demo import demo_network, demo_preprocessing, draw_batch
from zennit_dc.evaluation.quantus import explain, method_name
from zennit_dc.methods import METHODS, LRPGamma


needs_quantus = pytest.mark.skipif(importlib.util.find_spec('quantus') is None, reason='Quantus is not installed')
needs_captum = pytest.mark.skipif(importlib.util.find_spec('captum') is None, reason='Captum is not installed')
SPLIT = {'layer': 'residual', 'alpha': .45}


@pytest.fixture(scope='module', name='model')
def fixture_model():
    return demo_network()


@pytest.fixture(scope='module', name='drawings')
def fixture_drawings():
    images, masks, labels = draw_batch(4, 9)
    preprocessing = demo_preprocessing()
    inputs = torch.stack([preprocessing(torch.from_numpy(image).movedim(2, 0)) for image in images])
    return inputs.numpy(), np.asarray(labels), np.asarray(masks)[:, None]


def split_cam(model, inputs, targets):
    '''SplitCAM by its composite.'''
    attributor = Gradient(model, SplitCAM(**SPLIT))
    return attributor(torch.from_numpy(inputs), class_relevance(torch.from_numpy(targets)))[1].detach().numpy()


def test_maps(model, drawings):
    inputs, targets, _ = drawings
    attribution = split_cam(model, inputs, targets)
    maps = explain(model, inputs, targets, method='SplitCAM', **SPLIT)
    assert type(maps) is np.ndarray and maps.dtype == np.float32 and maps.shape == (4, 1, 64, 64)
    np.testing.assert_array_equal(maps, attribution.sum(1, keepdims=True))
    np.testing.assert_array_equal(explain(model, inputs, targets, **SPLIT, abs=True), np.abs(maps))
    channels = explain(model, inputs, targets, 'splitcam@residual', reduce=None, alpha=.45, layer='features')
    np.testing.assert_array_equal(channels, attribution)
    input_maps = explain(model, inputs, targets, 'SplitGrad@input', layer='features')
    np.testing.assert_array_equal(input_maps, explain(model, inputs, targets, 'splitgrad'))


@pytest.mark.parametrize('convert', [
    lambda inputs, targets: (torch.from_numpy(inputs), torch.from_numpy(targets)),
    lambda inputs, targets: (torch.from_numpy(inputs).requires_grad_(), targets.astype(np.int32)),
    lambda inputs, targets: (inputs.astype(np.float64), targets.tolist()),
    lambda inputs, targets: (inputs[..., ::-1].copy()[..., ::-1].copy(), targets.astype(float)),
])
def test_kinds_of_inputs(convert, model, drawings):
    expected = explain(model, *drawings[:2], method='layercam', layer='residual')
    inputs, targets = convert(*drawings[:2])
    actual = explain(model=model, inputs=inputs, targets=targets, method='LayerCAM', layer='residual', device='cpu')
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6 * expected.max())
    assert actual.flags.writeable


def test_one_image(model, drawings):
    inputs, targets, _ = drawings
    expected = explain(model, inputs[:1], targets[:1], method='LayerCAM', layer='residual')
    for one in (inputs[0], inputs[:1]):
        for target in (targets[0], int(targets[0]), targets[:1], [int(targets[0])]):
            np.testing.assert_array_equal(explain(model, one, target, method='LayerCAM', layer='residual'), expected)
    all_of_one = explain(model, inputs, 3, method='LayerCAM', layer='residual')
    np.testing.assert_array_equal(all_of_one, explain(model, inputs, [3] * 4, method='LayerCAM', layer='residual'))


def test_dtype_of_the_model(drawings):
    for dtype in (torch.float64, torch.bfloat16):
        maps = explain(demo_network().to(dtype), *drawings[:2], **SPLIT)
        assert maps.dtype == (np.float64 if dtype == torch.float64 else np.float32)


def test_lrp_gamma_knows_the_normalization(model, drawings):
    inputs, targets, _ = drawings
    classifier = Classifier('', model, demo_preprocessing())
    expected = LRPGamma(classifier)(torch.from_numpy(inputs), class_relevance(torch.from_numpy(targets)))[1]
    normalization = {'mean': (.5, .5, .5), 'std': (.25, .25, .25)}
    actual = explain(model, inputs, targets, 'LRP-γ', reduce=None, **normalization)
    np.testing.assert_array_equal(actual, expected.detach().numpy())
    assert not np.allclose(explain(model, inputs, targets, 'LRP-γ', reduce=None), actual)


@pytest.mark.parametrize('spelling, name', [
    ('SplitCAM', 'splitcam'), ('LRP-γ', 'lrp-gamma'), ('LRP-gamma', 'lrp-gamma'), ('lrp γ', 'lrp-gamma'),
    ('Input × Gradient', 'input-x-gradient'), ('InputXGradient', 'input-x-gradient'), ('GradCAM++', 'gradcam++'),
    ('Grad-CAM', 'gradcam'), ('IntegratedGradients', 'integrated-gradients'), ('GradientShap', 'gradient-shap'),
    ('Random', 'random'), ('Random Baseline', 'random'), ('gradient', 'gradient'),
    *((name, name) for name in METHODS), *((method.title, name) for name, method in METHODS.items()),
])
def test_names(spelling, name):
    assert method_name(spelling) == name


@pytest.mark.parametrize('options, message', [
    ({'method': 'none'}, 'no method \'none\''), ({'method': 'SplitCAM'}, 'SplitCAM needs a layer'),
    ({'method': 'SplitCAM@nowhere'}, 'no module named \'nowhere\''), ({'method': 'splitcam@'}, 'no module named'),
    ({'method': 'LayerCAM@residual', 'alpha': .4}, 'LayerCAM has no parameter \'alpha\''),
    ({'method': 'gradient', 'reduce': 'mean'}, 'reduce'), ({'method': 'gradient', 'mean': (.5, .4)}, '2 channels'),
    ({'method': 'gradient', 'targets': 10}, 'no class 10'), ({'method': 'gradient', 'targets': [0]}, r'\(4,\)'),
    ({'method': 'gradient', 'inputs': np.zeros((64, 64))}, 'channels, height, width'),
])
def test_what_is_wrong(options, message, model, drawings):
    with pytest.raises(ValueError, match=message):
        explain(**{'model': model, 'inputs': drawings[0], 'targets': drawings[1], **options})


def test_training_mode_is_refused(drawings):
    model = demo_network()
    model.train()
    with pytest.raises(RuntimeError, match='the model .DemoNetwork. is in training mode'):
        explain(model, *drawings[:2], method='gradient')
    model.eval().features[1].train()
    with pytest.raises(RuntimeError, match='\'features.1\' .BatchNorm2d. is in training mode'):
        explain(model, *drawings[:2], method='gradient')


@needs_quantus
def test_metrics_by_the_function_and_by_given_maps(model, drawings):
    import quantus

    inputs, targets, masks = drawings
    maps = split_cam(model, inputs, targets).sum(1, keepdims=True)
    options = {'abs': False, 'normalise': False, 'disable_warnings': True, 'display_progressbar': False}
    metrics = [
        quantus.PixelFlipping(features_in_step=64, perturb_baseline='mean', **options),
        quantus.PointingGame(**options), quantus.AttributionLocalisation(**options),
    ]
    for metric in metrics:
        given = metric(model, inputs, targets, maps, masks, device='cpu')
        called = metric(
            model, inputs, targets, s_batch=masks, explain_func=explain, device='cpu',
            explain_func_kwargs={'method': 'SplitCAM', **SPLIT}
        )
        np.testing.assert_allclose(np.asarray(called, float), np.asarray(given, float), rtol=1e-4)


@needs_quantus
def test_metric_that_explains_again(model, drawings):
    import quantus

    metric = quantus.MaxSensitivity(
        nr_samples=2, abs=True, disable_warnings=True, display_progressbar=False
    )
    scores = metric(
        model, *drawings[:2], explain_func=explain, explain_func_kwargs={'method': 'layercam@residual'}, device='cpu'
    )
    assert len(scores) == 4 and np.isfinite(scores).all() and min(scores) > 0.


@needs_quantus
@pytest.mark.parametrize('per_method', [True, False])
def test_evaluate(per_method, model, drawings):
    import quantus

    inputs, targets, masks = drawings
    if per_method:
        methods = {'SplitCAM': partial(explain, **SPLIT), 'LayerCAM@features': explain}
        shared = {}
    else:
        methods = {'SplitCAM': explain, 'LayerCAM@features': explain}
        shared = {'layer': 'residual'}
    metrics = {'pointing': quantus.PointingGame(
        abs=False, disable_warnings=True, display_progressbar=False, return_aggregate=False
    ), 'localisation': quantus.AttributionLocalisation(
        abs=False, normalise=False, disable_warnings=True, display_progressbar=False
    )}
    results = quantus.evaluate(
        metrics, methods, model, inputs, targets, s_batch=masks, explain_func_kwargs=shared
    )
    assert list(results) == ['SplitCAM', 'LayerCAM@features']
    map = LayerCAM(model, 'features')(torch.from_numpy(inputs), class_relevance(torch.from_numpy(targets)))[1]
    expected = metrics['localisation'](model, inputs, targets, map.sum(1, keepdim=True).numpy(), masks)
    np.testing.assert_allclose(results['LayerCAM@features']['localisation'], expected, rtol=1e-5)
    assert set(results['SplitCAM']['pointing']) <= {True, False} and len(results['SplitCAM']['pointing']) == 4


@needs_captum
def test_captums_methods_by_the_function(model, drawings):
    inputs, targets, _ = drawings
    for name in ('Saliency', 'Guided Backprop', 'Feature Ablation', 'GradCAM@residual', 'Random'):
        assert explain(model, inputs, targets, name).shape == (4, 1, 64, 64)
    coarse = explain(model, inputs, targets, 'Feature Ablation', patch=32)
    assert len(np.unique(coarse[0])) == 4


@pytest.mark.parametrize('method', ['cafo', 'CASO', 'SmoothCAFO', 'smooth-caso'])
def test_maps_of_the_loss(method, model, drawings):
    inputs, targets, _ = drawings
    parameters = {'samples': 3, 'seed': 1} if 'mooth' in method else {}
    maps = explain(model, inputs, targets, method, penalty=Sparsity(.6), classes=4, **parameters)
    assert maps.shape == (4, 1, 64, 64) and (maps >= 0.).all()
    assert ((maps == 0.).sum((1, 2, 3)) == round(.6 * 64 * 64)).all()
    single = explain(model, inputs[2:3], targets[2:3], method, penalty=Sparsity(.6), classes=4, **parameters)
    # the noise is each image's own; the orders of sums differ in float32
    np.testing.assert_allclose(single, maps[2:3], rtol=1e-3, atol=1e-3 * maps.max())
