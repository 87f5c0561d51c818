import pytest

from substrate.telemetry.trace.secret_names import is_secret_name, kind_of_name, words_of


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("PASSWORD", "password"),
        ("PGPASSWORD", "password"),
        ("MYSQL_PWD", "password"),
        ("DB_PASS", "password"),
        ("passphrase", "password"),
        ("spring.datasource.password", "password"),
        ("client_secret", "secret"),
        ("AWS_SECRET_ACCESS_KEY", "secret"),
        ("GITHUB_TOKEN", "token"),
        ("accessToken", "token"),
        ("api_key", "api_key"),
        ("OPENAI_API_KEY", "api_key"),
        ("X-Api-Key", "api_key"),
        ("apiKey2", "api_key"),
        ("APIKEY", "api_key"),
        ("private_key", "key"),
        ("access-key", "api_key"),
        ("STRIPE_KEY", "key"),
        ("AccountKey", "key"),
        ("Authorization", "authorization"),
        ("_auth", "auth"),
        ("Cookie", "cookie"),
        ("Set-Cookie", "cookie"),
        ("CREDENTIALS", "credential"),
    ],
)
def test_names_of_secrets(name, kind):
    assert kind_of_name(name) == kind
    assert is_secret_name(name)


@pytest.mark.parametrize(
    "name",
    [
        *("", "_", "-", "123", "PATH", "HOME", "PWD", "OLDPWD", "USER", "AUTHOR", "author"),
        *("keyboard", "KEYBOARD_LAYOUT", "key-type", "key_id", "AWS_ACCESS_KEY_ID", "monkey"),
        *("primary_key", "sort-key", "public_key", "hotkey", "turkey", "key", "keys"),
        *("SSH_AUTH_SOCK", "password-stdin", "password_file", "token_type", "token-url"),
        *("max_tokens", "num-tokens", "TOKENIZERS_PARALLELISM", "tokenizer", "secretary"),
        *("auth.example.com", "credential.helper", "cookie-jar", "bypass", "compass", "passenger"),
        *("PASSED", "auth-type", "x" * 300 + "password"),
    ],
)
def test_names_that_only_look_like_it(name):
    assert not is_secret_name(name)


def test_words_are_split_at_signs_and_capitals():
    assert words_of("--awsSecretKey2") == ["aws", "secret", "key"]
    assert words_of("HTTPServerToken") == ["http", "server", "token"]
    assert words_of("X-Api_Key.v2") == ["x", "api", "key", "v"]
