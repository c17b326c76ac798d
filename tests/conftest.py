'''How the tests are run: by one thread in each process, and the slowest first.'''
import os


# before torch is imported, and for the processes that tests start, too: two workers share the cores
THREADS = os.environ.get('ZENNIT_DC_TESTS_THREADS', '1')
for library in ('OMP', 'MKL', 'OPENBLAS', 'NUMBA'):
    os.environ[f'{library}_NUM_THREADS'] = THREADS

from collections import Counter  # noqa: E402

import helpers  # noqa: E402
import hypothesis  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402
from commands import ATTRIBUTE, require_success, run, run_process  # noqa: E402
from databases import write_attributions  # noqa: E402
from literal import Network  # noqa: E402
from processes import choose_kernels  # noqa: E402

from zennit_dc.cli.report import save_drawings  # noqa: E402
from zennit_dc.demo import draw_batch  # noqa: E402


torch.set_num_threads(int(THREADS))
choose_kernels()
hypothesis.settings.register_profile('the same examples', derandomize=True)
hypothesis.settings.register_profile('other examples', derandomize=False, database=None)
hypothesis.settings.load_profile('the same examples')

# the beginnings of the names of tests that share what takes seconds, so that one worker is to run all of them: drawings
# with their attributions, and the process of which others are copies
TOGETHER = {
    'processes': (
        'tests/test_analyses.py', 'tests/test_attributions.py', 'tests/test_browser.py', 'tests/test_virelay.py',
        'tests/test_evaluation_runs.py', 'tests/test_examples.py', 'tests/test_startup.py', 'tests/test_cli.py',
        'tests/test_baselines.py::test_missing_captum', 'tests/test_demo_images.py::test_training',
        'tests/test_mnist_examples.py::test_example_that_was_killed_goes_on',
    ),
}


# the beginnings of the names of tests that -m core selects, and of those among them that it leaves out: real networks
CORE = (
    'tests/forms/', 'tests/test_composites.py', 'tests/test_fuzz.py', 'tests/test_literal.py',
    'tests/test_blocks.py', 'tests/test_passes.py', 'tests/test_recentering.py', 'tests/test_rules.py',
    'tests/test_pair.py', 'tests/test_theorems.py', 'tests/test_views.py',
)
NOT_CORE = ('tests/forms/test_attention.py::test_transformers_of_torchvision',)


def pytest_addoption(parser):
    '''How many random programs are tried, what is drawn, and whether tests of minutes are run.'''
    parser.addoption('--graphs', type=int, default=100, help='The number of random programs that are tested.')
    parser.addoption('--seed', type=int, default=0, help='The seed of what tests draw: images, examples, programs.')
    parser.addoption('--long', action='store_true', help='Run the tests that take minutes, too.')


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config):
    '''Draw other images and examples with another seed.'''
    helpers.SEED = config.getoption('seed')
    if helpers.SEED:
        hypothesis.settings.load_profile('other examples')
        config.option.hypothesis_seed = helpers.SEED


def pytest_ignore_collect(collection_path, config):
    '''With -m core, import no other tests, and nothing of what these need.'''
    if config.getoption('markexpr') == 'core' and collection_path.suffix == '.py':
        name = collection_path.relative_to(config.rootpath).as_posix()
        return None if name.startswith(CORE) else True
    return None


def unit(name):
    '''What one worker runs: a test, or some together.'''
    return next((unit for unit, beginnings in TOGETHER.items() if name.startswith(beginnings)), name)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config, items):
    '''Mark the core, and start with what takes longest.'''
    files = {beginning.partition('::')[0] for beginnings in TOGETHER.values() for beginning in beginnings}
    for item in items:
        if item.nodeid.startswith(CORE) and not item.nodeid.startswith(NOT_CORE):
            item.add_marker(pytest.mark.core)
        if item.get_closest_marker('long') and not config.getoption('--long'):
            item.add_marker(pytest.mark.skip(reason='takes minutes: --long runs it'))
    assert all((config.rootpath / file).is_file() for file in files), 'TOGETHER has files that are not there'
    seconds = Counter()
    for item in items:
        slow = item.get_closest_marker('slow')
        seconds[unit(item.nodeid)] += slow.args[0] if slow else 0
    items.sort(key=lambda item: -seconds[unit(item.nodeid)])


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup():
    '''Let no test depend on those that ran before it in the same process.'''
    torch.manual_seed(helpers.SEED)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    '''With ``--dist loadscope``, workers take unit by unit, in the order of the collection.'''
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            return unit(nodeid)

    return Scheduling(config, log) if config.getvalue('dist') == 'loadscope' else None


@pytest.fixture(name='network')
def fixture_network():
    '''The network that has a literal implementation.'''
    return Network()


@pytest.fixture(name='image')
def fixture_image():
    '''Two images for it.'''
    return helpers.random_image(2, 3, 16, 16)


# what tests of the unit 'processes' share: each step from drawings to a project, by its command as a process

@pytest.fixture(scope='session', name='dataset')
def fixture_dataset(tmp_path_factory):
    '''The folder of the images of 90 drawings.'''
    folder = tmp_path_factory.mktemp('drawings')
    save_drawings(folder, *draw_batch(90, 11))
    return folder / 'images'


@pytest.fixture(scope='session', name='attributed')
def fixture_attributed(dataset, tmp_path_factory):
    '''The folder of the attributions of the drawings.'''
    pytest.importorskip('h5py', reason='the extra "virelay" is not installed')
    out = tmp_path_factory.mktemp('attributed') / 'attribution.h5'
    require_success(run_process('attribute', dataset, *ATTRIBUTE, '--out', out))
    return out.parent


@pytest.fixture(scope='session', name='project_file')
def fixture_project_file(attributed):
    '''The project file of the analysis of the attributions.'''
    pytest.importorskip('corelay', reason='the extra "virelay" is not installed')
    attribution, analysis = attributed / 'attribution.h5', attributed / 'analysis.h5'
    out = attributed / 'project.yaml'
    require_success(run('analyze', attribution, '--clusters', '2,3', '--out', analysis))  # umap compiles for seconds
    written = run_process('project', attribution, analysis, '--name', 'Drawings', '--out', out)
    require_success(written)
    assert f'python -m virelay {out}' in written.stdout
    return out


@pytest.fixture(name='blobs')
def fixture_blobs(tmp_path):
    '''Maps of two classes, each of two groups with blobs at different places, and three maps of a third class.'''
    rng = np.random.default_rng(0)
    labels, groups = np.array(30 * [0, 1] + 3 * [2]), rng.integers(0, 2, 63)
    maps = .1 * rng.standard_normal((63, 40, 40))
    for map, group in zip(maps, groups):
        row = 5 + 22 * group
        map[row:row + 8, 10:18] += rng.uniform(1., 100.)
    write_attributions(tmp_path / 'attribution.h5', maps, labels)
    return tmp_path, labels, groups
