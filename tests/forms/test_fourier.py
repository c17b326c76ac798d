'''Fourier transforms and complex numbers.'''
from functools import partial

import pytest
import torch
from helpers import assert_close, explain, gradient_of, random_image
from jacobians import require_relevance, require_sensitivities, require_streams
from torch import nn
from torch.nn import functional as F

from zennit_dc import DetachedStatistics, SplitCAM, SplitGrad, SplitLRP


SIGNAL, IMAGE = (2, 24), (2, 3, 6, 5)
WINDOW = torch.hann_window(8, dtype=torch.float64)
FACTORS = torch.complex(random_image(6, 1, seed=8), random_image(6, 1, seed=9))


def stft(x, **kwargs):
    return torch.stft(x, 8, 3, window=WINDOW[:6], win_length=6, return_complex=True, **kwargs)


def numbers(x):
    return torch.view_as_complex(x[..., 1:3].contiguous())


# of one step each, so that the absolute matrix is that of the streams
LINEAR = {
    'stft': (SIGNAL, lambda x: torch.view_as_real(stft(x, pad_mode='constant'))),
    'stft of one signal': (SIGNAL[1:], lambda x: torch.view_as_real(stft(x, pad_mode='constant'))),
    'stft without padding': (SIGNAL, lambda x: stft(x, center=False, normalized=True).real),
    'stft with two sides': (SIGNAL, lambda x: stft(x, pad_mode='constant', onesided=False).imag),
    'stft as real numbers': (SIGNAL, lambda x: torch.stft(x, 8, window=WINDOW, return_complex=False, center=False)),
    'rfft': (IMAGE, lambda x: torch.view_as_real(torch.fft.rfft(x))),
    'rfft of some entries': (IMAGE, lambda x: torch.fft.rfft(x, 4, -2, 'ortho').imag),
    'fft': (IMAGE, lambda x: torch.fft.fft(x, dim=1).real),
    'ifft': (IMAGE, lambda x: torch.view_as_real(torch.fft.ifft(numbers(x), dim=2))),
    'irfft': (IMAGE, lambda x: torch.fft.irfft(numbers(x), 9, -1)),
    'factors': (IMAGE, lambda x: torch.view_as_real(numbers(x)[..., None] * FACTORS)),
    'real factors': (IMAGE, lambda x: torch.view_as_real(torch.complex(x, x) * random_image(5, seed=4)).flatten(1)),
    'offsets': (IMAGE, lambda x: torch.view_as_real(torch.complex(x, x) - FACTORS)),
}


@pytest.mark.parametrize('name', LINEAR)
def test_linear(name):
    require_streams(*LINEAR[name])
    require_sensitivities(*LINEAR[name])


@pytest.mark.parametrize('name', [name for name in LINEAR if 'factors' not in name])
def test_relevance(name):
    require_relevance(*LINEAR[name])


class Listening(nn.Module):
    '''A network on a spectrogram, of shape (batch, 5, 9), of a signal.'''
    def __init__(self, spectrogram):
        super().__init__()
        torch.manual_seed(0)
        self.spectrogram = spectrogram
        self.first, self.conv, self.last = nn.Conv1d(1, 1, 3, padding=1), nn.Conv1d(5, 6, 3), nn.Linear(6, 3)
        self.double().eval()

    def forward(self, x):
        z = torch.stft(self.first(x[:, None])[:, 0], 8, 3, window=WINDOW, return_complex=True)
        return self.last(F.relu(self.conv(self.spectrogram(z))).mean(-1))


SPECTROGRAMS = {
    'magnitude': lambda z: z.abs(),
    'power': lambda z: torch.abs(z).pow(2.),
    'power by hand': lambda z: z.real ** 2 + z.imag.square(),
    'product with the conjugate': lambda z: (z * z.conj()).real,
    'root of the power': lambda z: torch.view_as_real(z).pow(2).sum(-1).add(1e-9).sqrt(),
    'logarithm': lambda z: torch.log(z.abs() + .1),
    'decibels': lambda z: 10 * torch.log10(z.abs().pow(2).clamp(min=1e-10)),
    'moved': lambda z: z.transpose(1, 2).flip(1).unsqueeze(1)[:, 0].abs().transpose(1, 2),
    'between spectra': lambda z: (z / 3. + 2j * z).abs(),
    'there and back': lambda z: torch.fft.irfft(torch.fft.rfft(z.real, dim=-1), 9).abs(),
    'of images': lambda z: torch.fft.irfftn(torch.fft.rfft2(z.real) * z.imag[:1, :, :5].detach(), (5, 9), (-2, -1)),
    'of all axes': lambda z: torch.fft.ifft2(torch.fft.fftn(z, dim=(1, 2))).real,
}


@pytest.mark.parametrize('name', SPECTROGRAMS)
def test_networks(name):
    '''With a shift of one half the map is half of the gradient; and no map depends on other signals.'''
    model, signal, options = Listening(SPECTROGRAMS[name]), random_image(2, 24), [DetachedStatistics()]
    assert_close(explain(SplitGrad(.5, canonizers=options), model, signal), gradient_of(model, signal) / 2)
    for make in (SplitGrad, SplitLRP, partial(SplitCAM, 'conv')):
        composite = make(canonizers=options)
        map = explain(composite, model, signal)
        assert map.isfinite().all() and map.any(1).all()
        assert_close(map[:1], explain(composite, model, signal[:1]), 1e-7)


def test_magnitudes_conserve_relevance():
    model = Listening(SPECTROGRAMS['magnitude'])
    for layer in (model.first, model.conv, model.last):
        layer.bias.data.zero_()
    signal = random_image(2, 24)
    relevance = explain(SplitLRP(canonizers=[DetachedStatistics()], input_split='relu'), model, signal, unit=1)
    streams = [explain(SplitLRP(stream=stream, canonizers=[DetachedStatistics()]), model, signal, unit=1)
               for stream in ('positive', 'negative')]
    assert_close(streams[0] - streams[1], relevance)
    total = sum(stream.sum(1) for stream in streams)
    assert_close(total, torch.ones(2, dtype=torch.float64), 1e-3)


@pytest.mark.parametrize('function, name', [
    (torch.angle, 'angle'), (torch.exp, 'exp'), (lambda z: z.sum(1), 'sum'), (lambda z: z.mul_(2), 'mul_'),
    (lambda z: torch.istft(z, 8, 3, window=WINDOW), 'istft')
])
def test_refused(function, name):
    model = Listening(function)
    with SplitGrad(canonizers='auto').context(model), pytest.raises(NotImplementedError) as error:
        model(random_image(2, 24))
    assert name in str(error.value) and 'torch.view_as_real(z)' in str(error.value)


def test_complex_layer():
    model = Listening(nn.Identity())
    with SplitCAM('spectrogram').context(model), pytest.raises(ValueError, match='is complex'):
        model(random_image(2, 24))
