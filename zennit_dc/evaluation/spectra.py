'''Spectra of maps: how smooth they are, and what it costs in faithfulness.

The expected frequency of a map says how fast it changes over the image, and the gap to a reference how much of it is
another function's. The source is Mehrpanah, Gamba, Smith and Azizpour (ICCV 2025), which has both; their published
statistic, which measures little of frequency, is :py:func:`published_expected_frequency`.

Maps are tensors or arrays of shape (batch, height, width). Everything is computed in float64, map by map, so that a
number never depends on the other maps. Frequencies are in cycles per pixel of the map: those of a map at a layer's own
resolution are in cycles per cell.
'''
import itertools

import numpy as np
import torch
from scipy.stats import rankdata


def ranks(maps):
    '''The ranks of each map's values, over their number.

    Parameters
    ----------
    maps : :py:class:`torch.Tensor` or :py:class:`numpy.ndarray`
        The maps of shape (batch, height, width).

    Returns
    -------
    :py:class:`numpy.ndarray`
        The ranks of the same shape, in (0, 1]. Equal values have the mean of their ranks.

    Raises
    ------
    ValueError
        If the maps have another shape, or are empty.
    FloatingPointError
        If a map is not finite.
    '''
    maps = require_maps(maps)
    return rankdata(maps.reshape(len(maps), -1), axis=1).reshape(maps.shape) / maps[0].size


def expected_frequency(maps, ranked=True, mirror=False):
    '''The mean frequency of each map, weighted by its energy (the source's equation 5, as a mean over the plane of
    frequencies).

    With :math:`X` the Fourier transform and :math:`\\rho` the absolute frequency, it is :math:`\\sum_{\\rho > 0} \\rho
    |X|^2 / \\sum_{\\rho > 0} |X|^2`. A wave has its own frequency, white noise :math:`(\\sqrt 2 + \\ln(1 + \\sqrt 2)) /
    6 = .3826`. It does not change with a factor or a constant that is added; with ranks, under no increasing function.

    Parameters
    ----------
    maps : :py:class:`torch.Tensor` or :py:class:`numpy.ndarray`
        The maps of shape (batch, height, width).
    ranked : bool, optional
        Whether to take the ranks in place of the values, see :py:func:`ranks`.
    mirror : bool, optional
        Whether to continue the maps evenly beyond their borders, so that there is no jump, whose frequencies are high:
        advised for maps of few cells.

    Returns
    -------
    :py:class:`numpy.ndarray`
        The expected frequencies in cycles per pixel, of shape (batch,), in (0, 0.71]. A constant map has none, which
        is NaN.

    Raises
    ------
    ValueError
        If the maps have another shape, or are empty.
    FloatingPointError
        If a map is not finite.
    '''
    energies, frequencies = spectrum(scaled(mirrored(values(maps, ranked), mirror)))
    return share(energies * frequencies, energies)


def spectral_tail(maps, cutoff=.25, ranked=True):
    '''The share of each map's energy at frequencies of at least a cutoff.

    Parameters
    ----------
    maps : :py:class:`torch.Tensor` or :py:class:`numpy.ndarray`
        The maps of shape (batch, height, width).
    cutoff : float, optional
        The frequency in cycles per pixel.
    ranked : bool, optional
        Whether to take the ranks in place of the values, see :py:func:`ranks`.

    Returns
    -------
    :py:class:`numpy.ndarray`
        The shares of shape (batch,), in [0, 1]; NaN for a constant map.

    Raises
    ------
    ValueError
        If the maps have another shape, or are empty.
    FloatingPointError
        If a map is not finite.
    '''
    energies, frequencies = spectrum(scaled(values(maps, ranked)))
    return share(energies * (frequencies >= cutoff), energies)


def radial_profile(maps, ranked=True):
    '''The mean energy of each map over rings of frequencies, for figures.

    Parameters
    ----------
    maps : :py:class:`torch.Tensor` or :py:class:`numpy.ndarray`
        The maps of shape (batch, height, width).
    ranked : bool, optional
        Whether to take the ranks in place of the values, see :py:func:`ranks`.

    Returns
    -------
    frequencies : :py:class:`numpy.ndarray`
        The mean frequency of each ring in cycles per pixel, of shape (rings,). A ring is one step of the longer side's
        frequencies wide. The mean of the map is in none.
    energies : :py:class:`numpy.ndarray`
        The mean energies of shape (batch, rings).

    Raises
    ------
    ValueError
        If the maps have another shape, or are empty.
    FloatingPointError
        If a map is not finite.
    '''
    energies, frequencies = spectrum(values(maps, ranked))
    rings = np.rint(frequencies * max(frequencies.shape)).astype(int).ravel()[1:]  # without the mean
    _, rings = np.unique(rings, return_inverse=True)
    frequencies, energies = frequencies.reshape(1, -1)[:, 1:], energies.reshape(len(energies), -1)[:, 1:]
    return over_rings(rings, frequencies)[0], over_rings(rings, energies)


def frequency_gap(maps, reference):
    '''The absolute difference of the expected frequencies of maps and their references, both of the ranks.

    Parameters
    ----------
    maps, reference : :py:class:`torch.Tensor` or :py:class:`numpy.ndarray`
        The maps of shape (batch, height, width), and those to compare them with.

    Returns
    -------
    :py:class:`numpy.ndarray`
        The differences in cycles per pixel, of shape (batch,); NaN for a constant map.

    Raises
    ------
    ValueError
        If the maps have another shape, or are empty.
    FloatingPointError
        If a map is not finite.
    '''
    maps, reference = require_pair(maps, reference)
    return np.abs(expected_frequency(maps) - expected_frequency(reference))


def gradient_gap(maps, reference):
    '''How much of the reference each map leaves unexplained: :math:`\\min_s |s m - r|^2 / |r|^2 = 1 - \\cos^2(m, r)`.

    It is the source's gap between the network and the function whose gradient a map is, at one input and up to the
    scale that a map does not have. It is zero if and only if the map is a multiple of the reference, also a negative
    one.

    Parameters
    ----------
    maps, reference : :py:class:`torch.Tensor` or :py:class:`numpy.ndarray`
        The maps of shape (batch, height, width), or (batch, channels, height, width), and those to compare them with:
        the gradient of the same output for maps at the input, and gradient times activation, summed over channels and
        not rectified, for maps at a layer.

    Returns
    -------
    :py:class:`numpy.ndarray`
        The gaps of shape (batch,), in [0, 1]; NaN where a map or its reference is zero.

    Raises
    ------
    ValueError
        If the maps have another shape, or are empty.
    FloatingPointError
        If a map is not finite.
    '''
    maps, reference = (unit(each.reshape(len(each), -1)) for each in require_pair(maps, reference, axes=(3, 4)))
    # the residue of the projection, as 1 - cos² cancels where the maps are nearly parallel
    return ((maps - (maps * reference).sum(1, keepdims=True) * reference) ** 2).sum(1).clip(max=1.)


def gap_profile(maps, reference, edges):
    '''The gap of each map to its reference, divided among bands of frequencies.

    By Parseval's theorem, the parts of all frequencies sum to :py:func:`gradient_gap`, which the source writes as a
    difference of spectra.

    Parameters
    ----------
    maps, reference : :py:class:`torch.Tensor` or :py:class:`numpy.ndarray`
        The maps of shape (batch, height, width), and those to compare them with.
    edges : sequence of float
        The increasing edges of the bands in cycles per pixel. A frequency is in the band whose lower edge it reaches;
        the last band has its upper edge, too. The mean has frequency zero.

    Returns
    -------
    :py:class:`numpy.ndarray`
        The parts of shape (batch, bands); NaN where a map or its reference is zero.

    Raises
    ------
    ValueError
        If the maps have another shape, or are empty, or the edges do not increase.
    FloatingPointError
        If a map is not finite.
    '''
    edges = np.asarray(edges, float)
    if edges.ndim != 1 or len(edges) < 2 or not (np.diff(edges) > 0.).all():
        raise ValueError(f'the edges must be at least two increasing frequencies, not {edges.tolist()}')
    maps, reference = require_pair(maps, reference)
    shape = maps.shape
    maps, reference = (unit(each.reshape(len(each), -1)) for each in (maps, reference))
    # the map as a multiple of the reference's scale that fits it best is |m·r| m, of unit vectors
    residue = (reference - (maps * reference).sum(1, keepdims=True) * maps).reshape(shape)
    energies, frequencies = spectrum_with_mean(residue)
    return np.stack([
        (energies * inside).sum((1, 2)) for inside in (
            (frequencies >= low) & ((frequencies < high) | (high == edges[-1]) & (frequencies == high))
            for low, high in itertools.pairwise(edges)
        )
    ], 1)


def published_expected_frequency(maps):
    '''The statistic that the source's published code computes, for comparison with its tables alone.

    The ranks' spectrum, with the mean, is averaged over rings of radius :math:`\\lfloor k \\rfloor` around it, and the
    rings' numbers are averaged with these weights. As the mean rules the sum of the weights, and each ring counts
    as much as any other, a map with many zeros has a smaller one than a blurred one, and its unit depends on the size
    of the map; :py:func:`expected_frequency` is the definition.

    Parameters
    ----------
    maps : :py:class:`torch.Tensor` or :py:class:`numpy.ndarray`
        The maps of shape (batch, height, width).

    Returns
    -------
    :py:class:`numpy.ndarray`
        The numbers of shape (batch,), which have no unit.

    Raises
    ------
    ValueError
        If the maps have another shape, or are empty, or smaller than two pixels.
    FloatingPointError
        If a map is not finite.
    '''
    maps = ranks(maps)
    energies = np.abs(np.fft.fftshift(np.fft.fft2(maps), axes=(1, 2))) ** 2
    rows, columns = (np.arange(size) - size // 2 for size in maps.shape[1:])
    radii = np.sqrt(rows[:, None] ** 2 + columns ** 2).astype(int).ravel()
    if radii.max() < 1:
        raise ValueError('a map of one pixel has no frequencies')
    means = over_rings(radii, energies.reshape(len(maps), -1))
    return share(means * np.linspace(0., 1., means.shape[1]), means) / means.shape[1]


def over_rings(rings, rows):
    '''The means of each row over the entries in each ring, given by numbers from zero on.'''
    return np.stack([np.bincount(rings, row) for row in rows]) / np.bincount(rings)


def require_maps(maps, axes=(3,)):
    '''Maps as a float64 array. Raise if they are empty or not finite, or have another number of axes.'''
    maps = maps.detach().cpu().double().numpy() if isinstance(maps, torch.Tensor) else np.asarray(maps, np.float64)
    if maps.ndim not in axes or not maps.size:
        raise ValueError(f'the maps must have the shape (batch, height, width), not {maps.shape}')
    if not np.isfinite(maps).all():
        raise FloatingPointError('a map is not finite: check the input and the weights, or use a higher precision')
    return maps


def require_pair(maps, reference, axes=(3,)):
    '''Maps and references of the same shape.'''
    maps, reference = require_maps(maps, axes), require_maps(reference, axes)
    if maps.shape != reference.shape:
        raise ValueError(f'the maps have the shape {maps.shape}, but the references {reference.shape}')
    return maps, reference


def values(maps, ranked):
    '''The maps, or their ranks.'''
    return ranks(maps) if ranked else require_maps(maps)


def mirrored(maps, mirror):
    '''The maps, continued evenly if asked for.'''
    return np.pad(maps, [(0, 0), *((0, size) for size in maps.shape[1:])], 'symmetric') if mirror else maps


def spectrum(maps):
    '''The energies of maps without their means, whose sum is that of the squared values, and their absolute frequencies
    in cycles per pixel.'''
    constant = maps.max((1, 2), keepdims=True) == maps.min((1, 2), keepdims=True)
    energies, frequencies = spectrum_with_mean(np.where(constant, 0., maps - maps.mean((1, 2), keepdims=True)))
    energies[:, 0, 0] = 0.
    return energies, frequencies


def spectrum_with_mean(maps):
    '''The energies of maps, and their absolute frequencies.'''
    height, width = maps.shape[1:]
    energies = np.abs(np.fft.fft2(maps)) ** 2 / (height * width)
    return energies, np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width))


def share(part, energies):
    '''The part of the energies of each map; not a number where there are none.'''
    part, energies = (each.reshape(len(each), -1).sum(1) for each in (part, energies))
    return np.divide(part, energies, out=np.full(len(part), np.nan), where=energies > 0.)


def scaled(maps):
    '''Maps over their largest absolute values, so that no square leaves the range of float64.'''
    largest = np.abs(maps).max(tuple(range(1, maps.ndim)), keepdims=True)
    return maps / np.where(largest > 0., largest, 1.)


def unit(vectors):
    '''Vectors over their norms; not a number where one is zero.'''
    vectors = scaled(vectors)
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(norms > 0., norms, np.nan)
