"""Which layer each part of a policy is from; and the tests beside rules."""

import pytest

from substrate.policy.inline_tests import run_tests
from substrate.policy.origins import in_force
from substrate.policy.parse_policy import parse_policy
from substrate.policy.profiles import NAMES, parse_profile, profile_text
from substrate.policy.rules import USER, Subject
from substrate.telemetry.capture import gate


def rows(policy):
    return {(each.key, each.inside): each.layer for each in in_force(policy)}


def test_each_part_is_of_the_layer_that_said_it_last(ground):
    ground.system('default_action = "ask"\n[limits]\npids = 5\n[net]\nallow = ["a.example"]\n')
    ground.user_file('[limits]\npids = 5\nexecs = 3\n[net]\nallow = ["a.example", "b.example"]\n')
    ground.project('default_action = "allow"\n[limits]\nexecs = 2\n[net]\ndeny = ["c.example"]\n')
    found = rows(ground.policy())
    system, user, project = (layer.name for layer in ground.policy().layers[1:])
    assert found["default_action", "ask"] == system
    assert found["limits.pids", 5] == system
    assert found["limits.execs", 2] == project
    assert found["net.allow", "a.example"] == system
    assert found["net.allow", "b.example"] == user
    assert found["net.allow", "@pip"] == "builtin:coding-agent"
    assert found["net.deny", "c.example"] == project
    assert ("limits.memory_bytes", None) not in found


def test_inline_tests_tell_what_fails():
    text = """
[[command]]
match = ["rm", "-r", "-f", "**"]
action = "deny"
test = { match = ["rm -fr x", "rm x"], not_match = ["rm -rf y", "ls"] }
"""
    layer = parse_policy(text.encode(), kind=USER, name="x", label="user", shown="x").layer
    outcomes = [(o.line, o.wanted, o.met, o.passed) for o in run_tests([layer])]
    assert outcomes == [
        ("rm -fr x", True, True, True),
        ("rm x", True, False, False),
        ("rm -rf y", False, True, False),
        ("ls", False, False, True),
    ]


@pytest.mark.parametrize("name", NAMES)
def test_the_profiles_pass_their_own_tests(name):
    layer = parse_profile(name)
    assert all(rule.test.match for rule in layer.commands)
    assert [o for o in run_tests([layer]) if not o.passed] == []
    assert profile_text(name).startswith(b"# ")


#: what an agent does all day
DAILY = (
    "git status", "git diff --stat", "git add -A", "git commit -m x", "git checkout -b x", "git pull --rebase",
    "git fetch --all", "git stash", "git reset --hard HEAD~1", "git clone https://example.com/x", "git log -5",
    "git rebase -i main", "git branch -D x", "git worktree add ../x", "git clean -fdx", "git merge main",
    "pip install -e .", "pip install requests", "python -m pytest -q", "python3 -m venv .venv", "uv sync",
    "uv pip install x", "poetry install", "npm ci", "npm install", "npm run build", "npm test", "npx tsc",
    "pnpm install", "yarn add x", "yarn test", "bun install", "node x.js", "deno test",
    "cargo build --release", "cargo test", "cargo add x", "cargo clippy", "go build ./...", "go test ./...",
    "go mod tidy", "make -j4", "cmake -B build", "ninja -C build", "rm -rf build", "mv a b", "cp -r a b",
    "chmod +x x", "sed -i s/a/b/ f", "grep -r x .", "rg x", "find . -name x -delete", "curl https://example.com",
    "wget https://example.com", "docker build .", "docker run x", "docker compose up -d", "docker pull x",
    "kubectl get pods", "kubectl logs x", "terraform plan", "terraform fmt", "helm template x",
    "gh pr view 1", "gh pr list", "gh pr checkout 1", "gh issue list", "gh run view", "gh api repos/x/y",
    "apt-get install -y gcc", "sudo apt-get update", "ssh host", "rsync -a a b", "kill 1", "mvn package",
    "./gradlew build", "gradle test", "bundle install", "gem install x", "dotnet build", "bash -c 'ls | wc -l'",
    "python setup.py develop", "twine check dist/x", "npm pack", "npm version patch", "cargo package",
    "terraform -chdir=x plan", "terraform -chdir=x plan -out apply", "tofu validate", "mvn -pl deploy -am test", "mvn -DskipTests -T 4 install",
    "./mvnw -B -ntp verify", "gradle :publisher:test", "gradle build -x publish", "./gradlew :app:test --tests publishes",
    "docker buildx build --load -t push .", "docker manifest inspect x", "yarn workspace a run publish-docs", "heroku logs",
    "vercel build --prod", "vercel dev", "gh api -X GET search/issues -f q=x", "gh api graphql -f query=x", "hg commit -m push",
    "hg pull", "jj git fetch", "jj commit -m push", "cargo release patch", "nuget restore", "cargo add release",
)  # fmt: skip
#: what others see, or what cannot be taken back
ASKED = (
    "substrate policy trust", "git push", "git -C x push --force origin main", "git -c a=b push", "npm publish --access public",
    "cargo publish", "twine upload dist/x", "python3 -m twine upload dist/x", "gem push x.gem", "docker push x",
    "uv publish", "gh pr create --fill", "gh release create v1", "terraform apply -auto-approve",
    "kubectl delete pod x", "./gradlew publish", "npm unpublish x", "env X=1 git push",
    "bash -c 'git push'", "timeout 5 npm publish", "terraform -chdir=x apply", "terraform -chdir=x destroy", "tofu -chdir=x apply",
    "mvn -q deploy", "mvn clean deploy", "./mvnw deploy", "mvn -B release:perform", "gradle :a:publish", "./gradlew clean publish",
    "docker build --push .", "docker buildx build -t x --push .", "docker manifest push x", "yarn workspace a publish",
    "yarn workspace a npm publish", "heroku container:push web", "vercel", "vercel -y --prod", "nuget push x.nupkg",
    "gh api -X POST repos/x/y/issues", "gh api repos/x/y --method=DELETE", "hg -R x push", "jj git push", "cargo release -x patch",
)  # fmt: skip


def decided(ground, line):
    import os
    import shlex

    return (
        ground.load().decide(Subject(argv=tuple(os.fsencode(w) for w in shlex.split(line)))).action
    )


def test_nothing_that_an_agent_does_all_day_asks(ground):
    assert [line for line in DAILY if decided(ground, line) != "allow"] == []


@pytest.mark.parametrize(
    ("profile", "action"), [("coding-agent", "ask"), ("ci", "deny"), ("observe", "allow")]
)
def test_what_publishes_is_held_as_the_profile_says(ground, profile, action):
    ground.user_file(f'extends = "builtin:{profile}"')
    assert [line for line in ASKED if decided(ground, line) != action] == []


def test_locked_down_lets_look_and_asks_for_the_rest(ground):
    ground.user_file('extends = "builtin:locked-down"')
    for line in ("ls -la", "git status", "git diff", "cat x", "grep -r x .", "mkdir -p x"):
        assert decided(ground, line) == "allow", line
    for line in (
        "python x.py",
        "npm install",
        "curl example.com",
        "git push",
        "make",
        "./x",
        "rm -rf x",
    ):
        assert decided(ground, line) == "ask", line
    assert ground.load().net().allow == ()


def test_observe_needs_no_gate(ground):
    ground.user_file('extends = "builtin:observe"')
    assert ground.load().gate_table() == ({}, gate.ALLOW)


@pytest.mark.parametrize("profile", NAMES)
def test_the_table_of_each_profile_fits_the_gate(ground, profile):
    ground.user_file(f'extends = "builtin:{profile}"')
    table, _ = ground.load().gate_table()
    assert len(gate.pack_table(table)) < 1 << 20
