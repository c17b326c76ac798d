'''Long runs in parts: each finished part is a file of its own, so that an interrupted run goes on where it was.'''
import errno
import glob
import json
import os
import re
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout


FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}  # errors of the disk, which name no file


@contextmanager
def held(out, lock=None):
    '''Hold what a run writes, so that no other run writes there at the same time. A run that is killed holds nothing
    any longer. Of the processes that torchrun started, the first one holds it for all.

    Parameters
    ----------
    out : path
        The file or folder that the run writes.
    lock : path, optional
        The file that is locked, which is removed at the end. Default is a hidden one beside.

    Raises
    ------
    ValueError
        If another run holds it.
    '''
    out = Path(out)
    if os.name == 'nt' or int(os.environ.get('RANK', 0)) > 0:  # Windows removes no file that is open
        yield
        return
    lock = Path(lock or out.absolute().with_name(f'.{out.absolute().name}.lock'))
    holder = FileLock(lock, blocking=False)
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        lock.touch()  # or FileLock takes a folder that refuses files for one whose file is held
        holder.acquire()
    except Timeout:
        raise ValueError(
            f'another run{owner_of(lock)} writes to {out}: wait for it, or choose another --out'
        ) from None
    except OSError as error:
        raise unwritable(out, error) from error
    try:
        lock.write_text(str(os.getpid()))
        yield
    finally:
        lock.unlink(missing_ok=True)  # while it is held, so that it is no other run's
        holder.release()


def owner_of(lock):
    '''The process that holds a lock, for people, if it is known.'''
    try:
        owner = lock.read_text()
    except FileNotFoundError:  # it has just ended
        owner = ''
    return f' (process {owner})' if owner else ''


@contextmanager
def atomic_write(path, size=0, folder=None):
    '''Write a file as a whole or not at all.

    Parameters
    ----------
    path : path
        The file to be written, or replaced.
    size : int, optional
        The number of bytes that there must be space for, as HDF5 does not end well without.
    folder : path, optional
        Where to write it before it takes its place, in the same file system. Default is the file's own folder.

    Yields
    ------
    :py:class:`pathlib.Path`
        A new file, which takes its place at the end, and is removed if there was an error.

    Raises
    ------
    OSError
        If it cannot be written, with its name.
    '''
    path = Path(path)
    try:
        handle, name = tempfile.mkstemp(dir=folder or path.parent, prefix=f'.{path.name}.', suffix='.tmp')
    except OSError as error:
        raise unwritable(path, error) from error
    temporary = Path(name)
    try:
        with os.fdopen(handle, 'wb') as file:
            if size and hasattr(os, 'posix_fallocate'):
                os.posix_fallocate(file.fileno(), 0, size)
                file.truncate(0)
        yield temporary
        with open(temporary, 'rb') as file:
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~current_umask())
        os.replace(temporary, path)
    except OSError as error:
        if error.errno in FULL:
            raise unwritable(path, error) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


def unwritable(path, error):
    '''An error of the disk with the name of the file that was to be written.'''
    return type(error)(error.errno, f'{path} cannot be written: {error.strerror}')


def current_umask():
    '''The mask of permissions that new files do not get.'''
    mask = os.umask(0)
    os.umask(mask)
    return mask


class Parts:
    '''The finished parts of a run, in a folder beside its result.

    Parameters
    ----------
    out : path
        The file that the run makes.
    run : dict
        All that the result depends on, as far as JSON can tell.
    count : int
        The number of parts.
    shard : tuple[int, int], optional
        The number of a shard, from 1 on, and the number of shards, to make no other parts than those of this shard, in
        a folder of its own: shards share nothing until :py:meth:`collect` takes their parts. Default is all parts.
    '''
    def __init__(self, out, run, count, shard=None):
        first, shards = shard or (1, 1)
        self.folder = Path(f'{out}.parts' if shard is None else f'{out}.shard-{first}-of-{shards}.parts')
        self.run = json.loads(json.dumps(run))
        self.out, self.count, self.numbers = Path(out), count, range(first - 1, count, shards)

    def open(self):
        '''Make the folder, or make sure that it is of the same run. This is for one process to do.

        Raises
        ------
        ValueError
            If the folder holds parts of another run.
        '''
        self.folder.mkdir(parents=True, exist_ok=True)
        for leftover in self.folder.glob('.*.tmp'):
            leftover.unlink(missing_ok=True)
        path, parts = self.folder / 'run.json', list(self.folder.glob('*.npz'))
        if parts and path.is_file():
            self.require_same_run()
            return
        for part in parts:  # of a run that was being removed
            part.unlink()
        with atomic_write(path) as temporary:
            temporary.write_text(json.dumps(self.run, indent=1))

    def require_same_run(self):
        '''Raise a ValueError if the folder holds parts of another run.'''
        different = differences(json.loads((self.folder / 'run.json').read_text()), self.run)
        if different:
            raise ValueError(
                f'{self.folder} holds parts of another run, which differs in {", ".join(different)}: delete this'
                ' folder, or choose another --out'
            )

    def path(self, number):
        '''The file of a part.'''
        return self.folder / f'{number:06d}.npz'

    def missing(self):
        '''The numbers of the parts that are not finished.'''
        return [number for number in self.numbers if not self.path(number).is_file()]

    def finished(self):
        '''The numbers of the parts that are finished, of a run that is known.'''
        return set(self.numbers).difference(self.missing()) if (self.folder / 'run.json').is_file() else set()

    def shards(self):
        '''The shards of which there are folders, as parts.'''
        folders = self.out.parent.glob(f'{glob.escape(self.out.name)}.shard-*-of-*.parts')
        found = (re.search(r'\.shard-(\d+)-of-(\d+)\.parts$', folder.name) for folder in folders)
        return [Parts(self.out, self.run, self.count, tuple(map(int, match.groups()))) for match in found if match]

    def left(self):
        '''The numbers of the parts that are finished neither here nor by a shard.'''
        return set(self.missing()).difference(*(shard.finished() for shard in self.shards()))

    def require_shards(self):
        '''Raise a ValueError that says which shards to run again, if parts are missing.'''
        left, counts = self.left(), sorted({shard.numbers.step for shard in self.shards()})
        again = [f'{first}/{count}' for count in counts for first in range(1, count + 1)
                 if not left.isdisjoint(range(first - 1, self.count, count))]
        if left:
            remedy = f'--shard {", ".join(again)}' if again else 'each --shard from 1/n to n/n first, as there is none'
            raise ValueError(f'{len(left)} of {self.count} parts of {self.out} are missing: run {remedy}')

    def collect(self):
        '''Take the finished parts of all shards, and remove their folders. This is for one process to do.

        Raises
        ------
        ValueError
            If a shard is still running, or is of another run.
        '''
        for shard in self.shards():
            with held(shard.folder, shard.folder / 'lock'):
                finished = shard.finished()
                if finished:
                    shard.require_same_run()
                for number in finished:
                    os.replace(shard.path(number), self.path(number))
                shard.remove()

    def save(self, number, /, **arrays):
        '''Save a part.'''
        with atomic_write(self.path(number)) as temporary, open(temporary, 'wb') as file:
            np.savez(file, **arrays)

    def load(self, number, *keys):
        '''Load arrays of a part.'''
        with open(self.path(number), 'rb') as file, np.load(file, allow_pickle=False) as arrays:
            return [arrays[key] for key in keys]

    def remove(self):
        '''Remove the folder.'''
        shutil.rmtree(self.folder, ignore_errors=True)


def differences(first, second):
    '''The keys by which two dictionaries differ, with their values if those are short.'''
    return [
        f'{key} ({first.get(key)} there, {second.get(key)} here)'
        if max(len(str(each.get(key))) for each in (first, second)) < 60 else key
        for key in sorted({*first, *second}) if first.get(key) != second.get(key)
    ]
