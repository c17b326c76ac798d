'''Files that a user names, which are checked before anything is imported that takes long.'''
import os
import re
from pathlib import Path


# torchvision.datasets.folder.IMG_EXTENSIONS, which takes seconds to import
IMG_EXTENSIONS = ('.jpg', '.jpeg', '.png', '.ppm', '.bmp', '.pgm', '.tif', '.tiff', '.webp')


class UnreadableImage(ValueError):
    '''An image cannot be read.'''


def images_in(folder):
    '''The images in a folder, but not in folders within.

    Parameters
    ----------
    folder : path
        The folder.

    Returns
    -------
    list[path]
        The files with the name of an image, in the order of their names. Names with a dot in front are left out.

    Raises
    ------
    ValueError
        If there are none.
    '''
    names = sorted(each.name for each in os.scandir(folder) if is_image_name(each.name) and each.is_file())
    if not names:
        raise ValueError(
            f'there is no image in the folder {folder} ({", ".join(IMG_EXTENSIONS)}); folders within are not searched'
        )
    return [Path(folder, name) for name in names]


def is_image_name(name):
    '''Whether a file's name is one of an image, and not hidden.'''
    return name.lower().endswith(IMG_EXTENSIONS) and not name.startswith('.')


def require_file(path):
    '''Raise if a path is a URL, or leads to no file.'''
    require_local(path)
    if not os.path.isfile(path):
        raise UnreadableImage(f'{path} cannot be read as an image: there is no such file')


def require_local(path):
    '''Raise if a path is a URL.'''
    scheme = re.match(r'(https?|ftp|s3|gs|file):/+', str(path))  # a path has one slash where a URL has two
    if scheme and not os.path.exists(path):
        raise ValueError(f'{scheme[1]}://{str(path)[scheme.end():]} is a URL: download it first, and name the file')


def require_image_source(source):
    '''Raise if a path is neither a folder nor a file of NumPy.'''
    require_local(source)
    if not (source.is_file() if source.suffix == '.npz' else source.is_dir()):
        missing = f'there is no file {source}'
        raise ValueError(
            missing if source.suffix == '.npz' else f'there is no folder {source}, nor is it a file of NumPy (.npz)'
        )
