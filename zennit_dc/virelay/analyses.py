'''Clusters and embeddings of attributions by CoRelAy, in the layout of ViRelAy's databases.'''
import hashlib
import inspect
import json
import warnings
from pathlib import Path

import numpy as np
import torch

from ..data.images import load_label_map
from ..data.parts import Parts, atomic_write
from ..data.progress import progress_bar
from .databases import beside, require_same_run


SPARE = 3  # attributions more than clusters, which k-means and the eigensolver need


def analyze(
    attribution, out, clusters=range(2, 9), size=32, eigenvalues=32, neighbors=10, by='label', seed=0, progress=True
):
    '''Cluster and embed the attributions of each class: spectral relevance analysis, as CoRelAy has it.

    The maps, summed over channels, averaged down to ``size`` × ``size`` pixels and divided by their largest absolute
    value, get a spectral embedding from the symmetric graph of their nearest neighbors. Its eigenvectors are embedded
    by t-SNE and UMAP, and the first k of them are clustered into k clusters by k-means. The file has a group for each
    class, named by its WordNet ID, with ``index`` (the rows of the attributions), ``embedding/spectral`` (with the
    attribute ``eigenvalue``), ``embedding/tsne``, ``embedding/umap`` and ``cluster/kmeans-02`` and so on.

    Each finished class is kept in a folder ``out`` + ``.parts`` until the end, so that an interrupted analysis goes on
    where it was.

    Parameters
    ----------
    attribution : str or path
        The file of attributions, as :py:func:`zennit_dc.virelay.attribute` writes it, its label map beside it.
    out : str or path
        The file of the analysis.
    clusters : sequence of int, optional
        The numbers of clusters.
    size : int, optional
        The height and width, in pixels, of what is compared.
    eigenvalues : int, optional
        The number of eigenvectors. Classes with fewer attributions get two less than they have.
    neighbors : int, optional
        The number of nearest neighbors.
    by : {'label', 'prediction', 'target'}, optional
        Whether to group by the label, the predicted or the explained class.
    seed : int, optional
        The seed of k-means, t-SNE, UMAP and the eigensolver.
    progress : bool, optional
        Whether to show a progress bar.

    Returns
    -------
    list[tuple[str, int]]
        The name of each class that has too few attributions for the numbers of clusters, and how many it has.

    Raises
    ------
    ValueError
        If a parameter is wrong, the file is none of attributions, ``out`` exists from another run, or no class has
        enough of them.
    OSError
        If there is no space left on the disk.
    '''
    attribution, out = Path(attribution), Path(out)
    clusters = sorted(set(clusters))
    require_parameters(clusters, size, eigenvalues, neighbors, by)
    classes, attributed = read_classes(attribution, by)
    sizes = {label: int((classes == label).sum()) for label in np.unique(classes).tolist()}
    names = names_of(sizes, beside(attribution, '_labels.json'))
    large = large_enough(sizes, clusters)
    run = {
        'attribution': attributed, 'classes': hashlib.sha256(classes.tobytes()).hexdigest(),
        'clusters': clusters, 'size': size, 'eigenvalues': eigenvalues, 'neighbors': neighbors, 'by': by, 'seed': seed
    }
    parts = Parts(out, run, len(large))
    small = [(names[label], count) for label, count in sizes.items() if label not in large]
    if out.exists():
        require_same_run(out, run, 'an analysis')
        parts.remove()
        return small
    parts.open()
    missing = parts.missing()
    for number in progress_bar(
        missing, 'classes', len(large), initial=len(large) - len(missing), unit='class', shown=progress
    ):
        rows = np.flatnonzero(classes == large[number])
        features = read_features(attribution, rows, size)
        parts.save(number, index=rows, **spectral_analysis(features, clusters, eigenvalues, neighbors, seed))
    write_analyses(out, parts, [names[label] for label in large])
    parts.remove()
    return small


def require_parameters(clusters, size, eigenvalues, neighbors, by):
    '''Raise if a parameter of :py:func:`analyze` is wrong, of which ``clusters`` is in order.'''
    if not clusters or clusters[0] < 2:
        raise ValueError('the numbers of clusters are at least 2')
    if min(size, eigenvalues, neighbors) < 1:
        raise ValueError('size, eigenvalues and neighbors must be positive')
    if by not in ('label', 'prediction', 'target'):
        raise ValueError(f'attributions can be grouped by label, prediction or target, not by {by!r}')


def names_of(labels, path):
    '''The names of classes in a label map, by their indices. Raise if one of the labels is not there.'''
    names = {entry['index']: entry['word_net_id'] for entry in load_label_map(path)}
    unknown = [label for label in labels if label not in names]
    if unknown:
        raise ValueError(f'class {unknown[0]} is not in the label map {path}')
    return names


def large_enough(sizes, clusters):
    '''The classes that have enough attributions for the numbers of clusters. Raise if there is none.'''
    least = max(clusters[-1], 2) + SPARE
    large = [label for label, count in sizes.items() if count >= least]
    if not large:
        raise ValueError(
            f'no class has the {least} attributions that {clusters[-1]} clusters need: the largest has'
            f' {max(sizes.values())}; {remedy(clusters, max(sizes.values()))}'
        )
    return large


def remedy(clusters, count):
    '''What can be done where the largest class has too few attributions for the numbers of clusters.'''
    possible = [each for each in range(2, max(clusters)) if each + SPARE <= count]
    if not possible:
        return f'two clusters need {2 + SPARE} images in a class'
    fewer = ','.join(str(each) for each in clusters if each in possible) or str(possible[-1])
    return f'--clusters {fewer} can do with that'


def read_classes(path, by):
    '''The class of each attribution, of shape (attributions,), and the run that they come from.'''
    import h5py

    if not path.is_file():
        raise ValueError(f'there is no file {path}')
    try:
        with h5py.File(path, 'r') as file:
            attributions = file['attribution']
            classes = file[by][:].argmax(1) if by == 'prediction' else file[by][:]
            if attributions.ndim != 4 or classes.shape != attributions.shape[:1] or classes.dtype.kind not in 'iu':
                raise ValueError(f'attribution has the shape {attributions.shape}, and {by} {classes.shape}')
            return classes.astype(np.int64), json.loads(file.attrs['run'])
    except (OSError, KeyError, ValueError, AttributeError, TypeError) as error:
        raise ValueError(f'{path} is not a file of attributions: {error}') from error


def read_features(path, rows, size):
    '''What is compared: the maps, averaged down and normalized, of shape (maps, pixels).'''
    import h5py

    maps = []
    with h5py.File(path, 'r') as file:
        for row in rows:
            saliency = torch.from_numpy(file['attribution'][row].astype(np.float64)).sum(0)
            small = [min(size, side) for side in saliency.shape]
            maps.append(torch.nn.functional.adaptive_avg_pool2d(saliency[None, None], small).flatten())
    maps = torch.stack(maps)
    largest = maps.abs().amax(1, keepdim=True)
    return (maps / torch.where(largest > 0., largest, 1.)).numpy()


def spectral_analysis(features, clusters, eigenvalues, neighbors, seed):
    '''The embeddings and clusters of one class, by CoRelAy.

    Parameters
    ----------
    features : :py:class:`numpy.ndarray`
        What is compared, of shape (samples, features).
    clusters : list[int]
        The numbers of clusters.
    eigenvalues, neighbors : int
        The number of eigenvectors and of nearest neighbors, at most.
    seed : int
        The seed.

    Returns
    -------
    dict[str, :py:class:`numpy.ndarray`]
        ``eigenvalue``, ``spectral``, ``tsne``, ``umap`` and ``kmeans-02`` and so on, by sample.
    '''
    pipeline = spectral_pipeline(len(features), clusters, eigenvalues, neighbors, seed)
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', message='.*(spectral|n_jobs|connected).*')
        (values, vectors), (*kmeans, tsne, umap) = pipeline(features)
    embeddings = {
        'eigenvalue': values[::-1], 'spectral': leading(vectors),
        'tsne': tsne - tsne.mean(0), 'umap': umap - umap.mean(0)  # where ViRelAy looks
    }
    return {**embeddings, **{f'kmeans-{each:02d}': found for each, found in zip(clusters, kmeans)}}


def spectral_pipeline(samples, clusters, eigenvalues, neighbors, seed):
    '''CoRelAy's pipeline for a number of samples: their eigenvalues and eigenvectors, and the clusters and embeddings
    of these.'''
    from corelay.pipeline.spectral import SpectralClustering
    from corelay.processor.affinity import SparseKNN
    from corelay.processor.base import FunctionProcessor
    from corelay.processor.clustering import KMeans
    from corelay.processor.embedding import EigenDecomposition, TSNEEmbedding
    from corelay.processor.flow import Parallel, Sequential

    embed_by_umap = seeded_umap(seed)
    return SpectralClustering(
        pairwise_distance=FunctionProcessor(distances),
        affinity=SparseKNN(n_neighbors=min(neighbors, samples - 1), symmetric=True),
        embedding=EigenDecomposition(
            n_eigval=min(eigenvalues, samples - 2), which='LA', normalize=False, kwargs=solver_options(samples, seed),
            is_output=True
        ),
        clustering=Parallel([
            *(Sequential([
                FunctionProcessor(lambda vectors, count=each: leading(vectors, count)),
                KMeans(n_clusters=each, kwargs={'random_state': seed, 'n_init': 10}),
            ]) for each in clusters),
            Sequential([
                FunctionProcessor(leading),
                TSNEEmbedding(perplexity=float(min(30, (samples - 1) // 3)), kwargs={'random_state': seed}),
            ]),
            Sequential([
                FunctionProcessor(leading), embed_by_umap(n_neighbors=min(15, samples - 1), metric='euclidean'),
            ]),
        ], broadcast=True, is_output=True)
    )


def solver_options(samples, seed):
    '''What makes SciPy's eigensolver start from a seed.'''
    from scipy.sparse.linalg import eigsh

    options = {'v0': np.random.default_rng(seed).standard_normal(samples)}
    if 'rng' in inspect.signature(eigsh).parameters:  # of SciPy 1.17 and later
        options['rng'] = np.random.default_rng(seed)
    return options


def seeded_umap(seed):
    '''CoRelAy's processor for UMAP with a seed, which CoRelAy's own does not pass on.'''
    from corelay.processor.embedding import UMAPEmbedding

    class SeededUMAP(UMAPEmbedding):
        '''UMAP with a seed.'''
        def function(self, data):
            import numba
            from umap import UMAP

            # numba's threads of OpenMP would slow down scikit-learn's t-SNE a hundred times
            if numba.config.THREADING_LAYER == 'default':
                numba.config.THREADING_LAYER = 'workqueue'

            return UMAP(
                n_neighbors=self.n_neighbors, min_dist=self.min_dist, metric=self.metric, random_state=seed, n_jobs=1
            ).fit_transform(data)

    return SeededUMAP


def distances(features):
    '''Euclidean distances of shape (samples, samples). A sample's distance to itself is negative, so that
    it is the nearest one, and CoRelAy leaves out this one rather than an equal sample.'''
    from scipy.spatial.distance import pdist, squareform

    matrix = squareform(pdist(features))
    np.fill_diagonal(matrix, -1.)
    return matrix


def leading(vectors, count=None):
    '''The leading eigenvectors, of which the solver puts the last first, with samples of norm one.'''
    vectors = vectors[:, ::-1][:, :count]
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), np.finfo(vectors.dtype).tiny)


def write_analyses(path, parts, names):
    '''Write an HDF5 file with a group for each class.'''
    import h5py

    clusters = parts.run['clusters']
    keys = [f'kmeans-{each:02d}' for each in clusters]
    try:
        with atomic_write(path, folder=parts.folder) as temporary, h5py.File(temporary, 'w') as file:
            for number, name in enumerate(names):
                group = file.create_group(name)
                group['index'], = parts.load(number, 'index')
                for key, array in zip(('spectral', 'tsne', 'umap'), parts.load(number, 'spectral', 'tsne', 'umap')):
                    group[f'embedding/{key}'] = array.astype(np.float32)
                    if key != 'spectral':
                        group[f'embedding/{key}'].attrs.update(embedding='spectral', index=np.array([0, 1]))
                group['embedding/spectral'].attrs['eigenvalue'], = parts.load(number, 'eigenvalue')
                for key, count, array in zip(keys, clusters, parts.load(number, *keys)):
                    group[f'cluster/{key}'] = array.astype(np.int32)
                    group[f'cluster/{key}'].attrs.update(embedding='spectral', k=count, index=np.arange(count))
            file.attrs['run'] = json.dumps(parts.run)
    except (OSError, RuntimeError) as error:
        raise OSError(f'{path} cannot be written: {error}') from error
