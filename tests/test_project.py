'''What a user installs, a wheel of a clean clone in an environment without extras; and the project's files.'''
import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from importlib.metadata import PathDistribution, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version


ROOT = Path(__file__).parents[1]
WORKFLOWS = sorted((ROOT / '.github' / 'workflows').glob('*.yml'))
FORMS = sorted((ROOT / '.github' / 'ISSUE_TEMPLATE').glob('[!c]*.yml'))
LICENCES = {  # the texts as the Free Software Foundation publishes them
    'LGPL': 'e3a994d82e644b03a792a930f574002658412f62407f5fee083f2555c5f23118',
    'GPL': '3972dc9744f6499f0f9b2dbf76696f2ae7ad8af9b23dde66d6af86c9dfb36986',
}


def called(*command, **options):
    '''The standard output of a command that has to succeed, which does not see this tree by PYTHONPATH.'''
    environment = {name: value for name, value in os.environ.items() if not name.startswith('PYTHON')}
    result = subprocess.run([*map(str, command)], capture_output=True, text=True, env=environment, **options)
    assert result.returncode == 0, f'{command}: {result.stdout} {result.stderr}'
    return result.stdout


def needed(requirements, extras=('',)):
    '''The installed packages that requirements name, with all that these need.'''
    found, waiting = {}, [(requirement, extras) for requirement in requirements]
    while waiting:
        text, extras = waiting.pop()
        requirement = Requirement(text)
        marker, key = requirement.marker, (requirement.name.lower(), frozenset(requirement.extras))
        is_needed = marker is None or any(marker.evaluate({'extra': extra}) for extra in extras)
        if key in found or not is_needed:
            continue
        found[key] = distribution(requirement.name)
        waiting += [(each, ('', *requirement.extras)) for each in found[key].requires or ()]
    return found.values()


@pytest.fixture(scope='module', name='clone')
def fixture_clone(tmp_path_factory):
    '''A clean clone of what is committed.'''
    if not (ROOT / '.git').exists():
        pytest.skip('this is no clone of a repository')
    folder = tmp_path_factory.mktemp('clone')
    download = [sys.executable, '-m', 'pip', 'download', '--quiet', '--no-deps', '--dest', folder / 'downloads']
    if subprocess.run([*download, 'setuptools-scm'], capture_output=True).returncode:
        pytest.skip('pip has neither a network nor a cache, from which it needs setuptools-scm')
    called('git', 'clone', '--quiet', ROOT, folder / 'zennit-dc')
    return folder / 'zennit-dc'


def built(source):
    '''The wheel of a source tree.'''
    out = source.parent / f'{source.name}-wheel'
    called(sys.executable, '-m', 'pip', 'wheel', '--quiet', '--no-deps', '--wheel-dir', out, source)
    wheel, = out.glob('*.whl')
    return wheel


@pytest.fixture(scope='module', name='wheel')
def fixture_wheel(clone):
    '''The wheel of the clone.'''
    return built(clone)


@pytest.fixture(scope='module', name='scripts')
def fixture_scripts(wheel, tmp_path_factory):
    '''The folder of the commands of a virtual environment with the wheel, and of other packages those that it needs, as
    they are installed here.'''
    folder = tmp_path_factory.mktemp('environment')
    venv.create(folder, symlinks=os.name != 'nt')
    paths = sysconfig.get_paths('venv', {'base': folder, 'platbase': folder})
    packages, scripts = Path(paths['purelib']), Path(paths['scripts'])
    metadata = next(path for path in zipfile.Path(wheel).iterdir() if path.name.endswith('.dist-info'))
    for package in needed(PathDistribution(metadata).requires):
        for name in {path.parts[0] for path in package.files} - {'..', '__pycache__'}:
            if not (packages / name).exists():
                (packages / name).symlink_to(package.locate_file(name))
    python = scripts / 'python'
    called(sys.executable, '-m', 'pip', '--python', python, 'install', '--quiet', '--no-deps', '--no-index', wheel)
    called(sys.executable, '-m', 'pip', '--python', python, 'check')
    return scripts


def run_in(scripts, folder, *command):
    '''What a command of an environment prints, in a folder.'''
    return called(scripts / command[0], *command[1:], cwd=folder)


@pytest.mark.slow(30)
def test_wheel_has_what_is_needed(wheel):
    '''The types, the demo\'s network and the licence; and none of the tests.'''
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {'zennit_dc/py.typed', 'zennit_dc/__init__.pyi', 'zennit_dc/demo/weights.pt'} <= names
    assert any(name.endswith('.dist-info/licenses/LICENSE') for name in names)
    assert {name.partition('/')[0].partition('-')[0] for name in names} == {'zennit_dc'}


@pytest.mark.slow(60)
def test_wheel_works_without_extras(scripts, tmp_path):
    '''The two commands of the README, in an environment that has nothing of the extras.'''
    lacking = 'import importlib.util as util; print([util.find_spec(name) for name in ("quantus", "captum", "h5py")])'
    assert run_in(scripts, tmp_path, 'python', '-c', lacking).strip() == '[None, None, None]'
    where = run_in(scripts, tmp_path, 'python', '-c', 'import zennit_dc; print(zennit_dc.__file__)')
    assert Path(where.strip()).is_relative_to(scripts.parent)
    run_in(scripts, tmp_path, 'zennit-dc', 'demo', '--out', 'demo')
    photograph = ROOT / 'examples' / 'coffee.jpg'
    run_in(scripts, tmp_path, 'zennit-dc', 'explain', photograph, '--model', 'demo', '--out', 'cup.png')
    assert [*(tmp_path / 'demo').glob('*.png')] and (tmp_path / 'cup.png').is_file()


@pytest.mark.slow(15)
def test_version_of_a_clone_and_of_an_export(clone, wheel, scripts, tmp_path):
    '''It is told by the tags, or is what is written where there is no history.'''
    version = wheel.name.split('-')[1]
    assert run_in(scripts, tmp_path, 'zennit-dc', '--version').splitlines()[0] == f'zennit-dc, version {version}'
    called('git', '-C', clone, 'archive', '--prefix=export/', '--output', tmp_path / 'export.tar', 'HEAD')
    shutil.unpack_archive(tmp_path / 'export.tar', tmp_path)
    assert Version(built(tmp_path / 'export').name.split('-')[1]) == Version('0.1.dev0')


def test_licence_is_verbatim():
    '''The LGPL, and the GPL that it builds on.'''
    lesser, _, general = (ROOT / 'LICENSE').read_text(encoding='utf-8').partition('\n\n\n' + 20 * ' ' + 'GNU GENERAL')
    texts = {'LGPL': lesser + '\n', 'GPL': 20 * ' ' + 'GNU GENERAL' + general}
    assert {name: hashlib.sha256(text.encode()).hexdigest() for name, text in texts.items()} == LICENCES


def test_workflows_are_valid():
    '''By the schemas of workflows and of forms for issues; and by actionlint, where it is installed.'''
    pytest.importorskip('check_jsonschema', reason='the extra "dev" is not installed')
    check = [sys.executable, '-m', 'check_jsonschema', '--builtin-schema']
    called(*check, 'vendor.github-workflows', *WORKFLOWS)
    called(*check, 'vendor.github-issue-forms', *FORMS)
    if shutil.which('actionlint'):
        called('actionlint', *WORKFLOWS)
