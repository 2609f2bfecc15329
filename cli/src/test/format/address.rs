//! The addresses of `http` and `tcp` steps, as far as they can be judged before something listens there.

/// What is wrong, and what to do about it.
type Wrong = (String, String);

/// `http://127.0.0.1:8080/health`. What a capture stands in for is not known yet.
pub(super) fn check_url(url: &str) -> Result<(), Wrong> {
    let help =
        || "http = \"http://127.0.0.1:8080/\", where [run] has publish = [\"8080:80\"]".to_owned();
    let Some(rest) = url.strip_prefix("http://") else {
        if url.contains("{{") {
            return Ok(());
        }
        return Err(match url.starts_with("https://") {
            true => (
                "a check by https cannot be made: nobody knows the guest's certificate".into(),
                "use http, or tcp for whether the port is open".into(),
            ),
            false => (format!("\"{url}\" is no URL: it begins by http://"), help()),
        });
    };
    if url.chars().any(|c| c.is_whitespace() || c.is_control()) {
        return Err((
            format!("\"{}\" has a space in it", url.escape_debug()),
            help(),
        ));
    }
    let host = rest.split(['/', '?', '#']).next().unwrap_or_default();
    check_host(host, false).map_err(|why| (format!("\"{url}\": {why}"), help()))
}

/// `127.0.0.1:8080`.
pub(super) fn check_address(address: &str) -> Result<(), Wrong> {
    let help = || "tcp = \"127.0.0.1:8080\", where [run] has publish = [\"8080:80\"]".to_owned();
    check_host(address, true).map_err(|why| (format!("\"{address}\": {why}"), help()))
}

/// A host's name or address, with a port.
fn check_host(text: &str, needs_port: bool) -> Result<(), String> {
    if text.contains("{{") {
        return Ok(());
    }
    // The colons of an address of IPv6 are in brackets.
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (host, rest) = rest.split_once(']').ok_or("a [ is not closed")?;
            host.parse::<std::net::Ipv6Addr>()
                .map_err(|_| format!("\"{host}\" is no address of IPv6"))?;
            let port = match rest {
                "" => None,
                rest => Some(rest.strip_prefix(':').ok_or("a : belongs behind the ]")?),
            };
            (host, port)
        }
        None => match text.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        },
    };
    let is_part = |c: char| c.is_ascii_alphanumeric() || "._-:".contains(c);
    if host.is_empty() {
        return Err("there is no host".into());
    }
    if !host.chars().all(is_part) {
        return Err(format!("\"{host}\" is no host's name or address"));
    }
    match port {
        None if needs_port => Err("there is no port".into()),
        None => Ok(()),
        Some(port) => {
            let digits = port.bytes().all(|it| it.is_ascii_digit());
            let number = port.parse::<u16>().ok().filter(|it| digits && *it > 0);
            number
                .map(|_| ())
                .ok_or_else(|| format!("\"{port}\" is no port: they are 1 to 65535"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_judged() {
        for good in [
            "http://127.0.0.1:8080/",
            "http://localhost",
            "http://[::1]:80/a?b#c",
            "http://{{host}}:80/",
            "{{url}}",
            "http://my-host.lan:65535?x",
        ] {
            assert_eq!(check_url(good), Ok(()), "{good}");
        }
        for (bad, complaint) in [
            ("https://a/", "https"),
            ("127.0.0.1:8080", "begins by http://"),
            ("http://", "no host"),
            ("http://:80/", "no host"),
            ("http://a:0/", "no port"),
            ("http://a:99999/", "no port"),
            ("http://a b/", "space"),
            ("http://u@h/", "no host's name"),
            ("http://[::1/", "not closed"),
            ("http://[x]/", "IPv6"),
            ("http://[::1]80/", "belongs behind"),
        ] {
            let (message, _) = check_url(bad).unwrap_err();
            assert!(message.contains(complaint), "{bad}: {message}");
        }
        for good in ["127.0.0.1:1", "[::1]:22", "h:{{port}}"] {
            assert_eq!(check_address(good), Ok(()), "{good}");
        }
        for (bad, complaint) in [
            ("127.0.0.1", "no port"),
            ("", "no host"),
            ("a:+1", "no port"),
            ("::1:22", "no host"),
        ] {
            let (message, _) = check_address(bad).unwrap_err();
            assert!(message.contains(complaint), "{bad}: {message}");
        }
    }
}
