'''A project of ViRelAy in a real browser.'''
import io
import os
import shutil
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image


webdriver = pytest.importorskip('selenium.webdriver', reason='selenium is not installed')
from selenium.common.exceptions import StaleElementReferenceException  # noqa: E402


pytest.importorskip('virelay', reason='the extra "virelay" is not installed')

CHROMIUM, DRIVER = shutil.which('chromium'), shutil.which('chromedriver')
pytestmark = [
    pytest.mark.skipif(
        not (CHROMIUM and DRIVER), reason='there is no Chromium: install the packages chromium and chromium-driver'
    ),
    pytest.mark.slow(10),
]


@pytest.fixture(name='address')
def fixture_address(project_file):
    '''The address at which ViRelAy serves the project.'''
    with socket.socket() as free:
        free.bind(('localhost', 0))
        port = free.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, '-m', 'virelay', '--port', str(port), project_file], stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, env={**os.environ, 'BROWSER': 'true'}
    )
    try:
        wait_for(lambda: connects(port) or server.poll() is not None)
        assert server.poll() is None, server.stdout.read()
        yield f'http://localhost:{port}'
    finally:
        server.kill()
        server.wait()


@pytest.fixture(name='browser')
def fixture_browser(tmp_path):
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in (
        'headless', 'no-sandbox', 'disable-quic', 'no-first-run', 'disable-background-networking',
        'disable-component-update', 'disable-sync', 'use-angle=swiftshader', 'enable-unsafe-swiftshader',
        'window-size=1500,1000', f'user-data-dir={tmp_path / "profile"}'
    ):
        options.add_argument(f'--{argument}')
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    try:
        yield browser
    finally:
        browser.quit()


def connects(port):
    '''Whether somebody listens.'''
    with socket.socket() as client:
        return client.connect_ex(('localhost', port)) == 0


def wait_for(condition, seconds=60.):
    '''Wait for a true value, and return it.'''
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, 'waited in vain'
        time.sleep(.1)
    return value


def colors(element):
    '''The number of colors in what an element looks like.'''
    image = Image.open(io.BytesIO(element.screenshot_as_png)).convert('RGB')
    return len(image.getcolors(2 ** 24))


def shown_images(browser):
    '''The attributions that are shown, once they are all loaded.'''
    loaded = 'return arguments[0].complete && arguments[0].naturalWidth > 0'
    try:
        images = browser.find_elements('css selector', '#selected-attributions-pane img')
        return images if images and all(browser.execute_script(loaded, image) for image in images) else None
    except StaleElementReferenceException:  # the page has replaced them
        return None


def new_picture(browser, others):
    '''What the first attribution looks like, once it looks unlike others.'''
    images = shown_images(browser)
    try:
        picture = images and np.array(Image.open(io.BytesIO(images[0].screenshot_as_png)).convert('RGB'), float)
    except StaleElementReferenceException:
        return None
    if picture is None or any(np.abs(picture - other).mean() <= 3. for other in others):
        return None
    return [picture]


def test_a_project_in_the_browser(address, browser, tmp_path):
    browser.get(address)
    canvas = wait_for(lambda: browser.find_elements('css selector', '#embedding-visualizer canvas'))[0]
    clusters = wait_for(lambda: browser.find_elements('css selector', '#cluster-pane button'))
    names, sizes = zip(*(' '.join(button.text.split()).rstrip(')').split(' (') for button in clusters))
    assert [name.upper() for name in names] == ['⬤ CLUSTER 1', '⬤ CLUSTER 2'] and sum(map(int, sizes)) == 9
    # the points of the embedding, in the colors of the clusters
    wait_for(lambda: colors(canvas) > 10)
    categories = browser.find_elements('css selector', 'select[name=category] option')
    assert len(categories) == 10 and 'striped disk' in ' '.join(option.text for option in categories)
    embeddings = browser.find_elements('css selector', 'select[name=embedding] option')
    assert {option.text.strip() for option in embeddings} == {'spectral', 'tsne', 'umap'}

    clusters[0].click()
    images = wait_for(lambda: shown_images(browser))
    assert len(images) == int(sizes[0])
    pictures = []
    for mode in ('input', 'overlay', 'attribution'):
        browser.find_element('css selector', f'label[for=radio-button-attribution-image-mode-{mode}]').click()
        pictures.extend(wait_for(lambda: new_picture(browser, pictures)))
        assert len(np.unique(pictures[-1].reshape(-1, 3), axis=0)) > 10
        browser.save_screenshot(str(tmp_path / f'{mode}.png'))
