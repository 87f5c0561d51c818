"""npm, pnpm and yarn in worlds, from packages that the test makes (plain_copy.py).

No network: dependencies are tarballs and directories beside the project.
"""

import os
import subprocess

import pytest

from tests.system.plain_copy import Place, anything, need

_PRELUDE = """
cd app 2>/dev/null || true
export npm_config_offline=true npm_config_audit=false npm_config_fund=false
export npm_config_update_notifier=false npm_config_loglevel=error npm_config_cache=$PWD/../cache
export NO_UPDATE_NOTIFIER=1 CI=true
"""
#: `left` needs `right`, which has a program and a script that runs when it is installed
_SETUP = r"""
mkdir -p left right/bin both app cache
echo '{"name": "right", "version": "1.0.0", "bin": {"right": "bin/right.js"}, "main": "bin/right.js",
 "scripts": {"postinstall": "node made.js"}}' > right/package.json
echo 'require("fs").writeFileSync("made", process.env.npm_lifecycle_event)' > right/made.js
printf '#!/usr/bin/env node\nmodule.exports = 2; if (require.main === module) console.log("right");\n' > right/bin/right.js
chmod 755 right/bin/right.js
echo '{"name": "left", "version": "1.0.0", "main": "i.js", "peerDependencies": {"right": "*"}}' > left/package.json
echo 'module.exports = 1 + require("right");' > left/i.js
echo '{"name": "@habit/both", "version": "0.0.1", "main": "i.js"}' > both/package.json
echo 'module.exports = 5;' > both/i.js
(cd right; npm pack --silent --pack-destination .. >/dev/null)
(cd left; npm pack --silent --pack-destination .. >/dev/null)
sed -i s/1.0.0/2.0.0/ right/package.json; sed -i 's/= 2/= 20/' right/bin/right.js
(cd right; npm pack --silent --pack-destination .. >/dev/null)
echo '{"name": "app", "version": "1.0.0", "private": true, "scripts": {"test": "node test.js", "right": "right"}}' > app/package.json
echo 'console.log(require("left") + require("@habit/both")); ' > app/test.js
"""
_READERS = (
    # times and numbers of this very run
    (r"(.*/)?node_modules/\.(modules\.yaml|pnpm-workspace-state.*|yarn-integrity)", anything),
)


def _place(caller, prelude="", **given):
    need("node", "npm")
    return Place(
        caller=caller,
        setup=_SETUP,
        prelude=_PRELUDE + prelude,
        readers=_READERS,
        varying=((rb"(in )?[0-9.]+ ?m?s\b", b"TIME"), (rb"\d+ms", b"TIME")),
        absent=r"(cache|store)(/.*)?",
        **given,
    )


def test_npm_over_an_installation_of_the_host(caller):
    """npm puts away each directory that it replaces by a rename, which is EXDEV in a world; and
    takes it back when a script fails."""
    place = _place(caller, afterwards=("npm ls --all && node test.js",))
    place.setup += "cd app; npm install --silent --offline ../right-1.0.0.tgz ../left-1.0.0.tgz\n"
    after = place.compare(
        "npm install ../right-2.0.0.tgz ../both; node test.js; npm -s run right; npm -s test",
        "readlink node_modules/.bin/right node_modules/@habit/both; cat node_modules/right/made",
        """
        mkdir ../bad; echo '{"name": "bad", "version": "1.0.0", "scripts": {"install": "exit 3"}}' > ../bad/package.json
        tar -czf ../bad.tgz --mtime=@1000000000 -C .. --transform s/bad/package/ bad/package.json
        ! npm install ../bad.tgz 2>/dev/null; node test.js; npm ls
        """,
        "rm -rf node_modules && npm ci; node test.js; ls -a node_modules",
        "npm uninstall @habit/both; ! node test.js 2>/dev/null; npm install ../both; node test.js",
    )
    assert "app/node_modules/.bin/right" in after


@pytest.fixture(scope="session")
def other_managers(base):
    """pnpm and yarn, from the registry that npm is set up for."""
    need("node", "npm")
    folder = base / "managers"
    words = ["npm", "install", "--silent", "--prefix", folder, "pnpm@9.15.9", "yarn@1.22.22"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300)
    if done.returncode != 0:
        why = f"no package registry answers: {done.stderr.strip()[-300:]}"
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(why)
    return folder / "node_modules" / ".bin"


def test_pnpm_links_from_its_store(caller, other_managers):
    """What a later command links from the store of an earlier one is a file of its own on the
    host (docs/how-to/recipes.md)."""
    prelude = f"export PATH={other_managers}:$PATH XDG_CONFIG_HOME=$PWD/../cache/c XDG_DATA_HOME=$PWD/../cache/d XDG_CACHE_HOME=$PWD/../cache/h XDG_STATE_HOME=$PWD/../cache/s npm_config_store_dir=$PWD/../store\n"
    _place(caller, prelude, links=False).compare(
        "pnpm add --offline --reporter=silent ../right-1.0.0.tgz ../left-1.0.0.tgz ../both && node test.js",
        "rm -rf node_modules && pnpm install --offline --frozen-lockfile --reporter=silent; node test.js; ls -a node_modules",
        "pnpm add --offline --reporter=silent ../right-2.0.0.tgz; node test.js; ls -a node_modules/.pnpm",
        "rm ../both/i.js; ! node test.js 2>/dev/null; pnpm store prune --reporter=silent",
    )


def test_yarn_from_a_mirror_of_tarballs(caller, other_managers):
    prelude = f'export PATH={other_managers}:$PATH\nyarn() {{ command yarn --offline --silent --no-progress --non-interactive --cache-folder $PWD/../cache/y "$@"; }}\n'
    _place(caller, prelude).compare(
        "yarn add file:../right-1.0.0.tgz file:../left-1.0.0.tgz file:../both; node test.js; ls node_modules",
        "rm -rf node_modules && yarn install --frozen-lockfile; node test.js; yarn check --integrity",
        "yarn upgrade right@file:../right-2.0.0.tgz; node test.js; yarn remove right; ! node test.js 2>/dev/null",
    )
