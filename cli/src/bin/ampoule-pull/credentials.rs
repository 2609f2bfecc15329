//! Who we are to a registry: what `docker login`, `podman login` or `skopeo login` have left, else nobody.

use std::env;
use std::fs::File;
use std::io::{self, BufReader};
use std::path::PathBuf;

use docker_credential::{CredentialRetrievalError, DockerCredential, get_credential_from_reader};
use oci_client::secrets::RegistryAuth;

use crate::fault::Fault;

/// What Docker Hub is called in such files.
const DOCKER_HUB: [&str; 3] = [
    "https://index.docker.io/v1/",
    "docker.io",
    "index.docker.io",
];

/// The files, the most telling first.
fn files() -> Vec<PathBuf> {
    let folder = |name: &str| {
        env::var_os(name)
            .filter(|it| !it.is_empty())
            .map(PathBuf::from)
    };
    if let Some(file) = folder("REGISTRY_AUTH_FILE") {
        return vec![file];
    }
    let docker = folder("DOCKER_CONFIG").or_else(|| Some(folder("HOME")?.join(".docker")));
    let containers = folder("XDG_RUNTIME_DIR").map(|it| it.join("containers/auth.json"));
    let docker = docker.map(|it| it.join("config.json"));
    docker.into_iter().chain(containers).collect()
}

/// What a registry is shown, and why it is not more, where that may matter.
pub(crate) fn of(registry: &str) -> Result<(RegistryAuth, Option<String>), Fault> {
    let names = match registry {
        "docker.io" => DOCKER_HUB.to_vec(),
        registry => vec![registry],
    };
    let mut note = None;
    for path in files() {
        for name in &names {
            let file = match File::open(&path) {
                Ok(file) => BufReader::new(file),
                Err(error) if error.kind() == io::ErrorKind::NotFound => break,
                Err(error) => return Err(Fault::of_file("read", &path, &error)),
            };
            match get_credential_from_reader(file, name) {
                Ok(DockerCredential::UsernamePassword(user, password)) => {
                    return Ok((RegistryAuth::Basic(user, password), None));
                }
                Ok(DockerCredential::IdentityToken(_)) => {
                    note = Some("identity tokens are not supported: log in with a password".into());
                }
                Err(CredentialRetrievalError::NoCredentialConfigured) => {}
                Err(
                    error @ (CredentialRetrievalError::ConfigReadError
                    | CredentialRetrievalError::CredentialDecodingError
                    | CredentialRetrievalError::CredentialMismatchError),
                ) => {
                    let why = error.to_string();
                    let path = path.display();
                    return Err(Fault::new(format!(
                        "the credentials in \"{path}\" are damaged: {why}"
                    )));
                }
                // Another program has them, which may have none for this registry, or not be there.
                Err(_) => {
                    note = Some(format!(
                        "the credential helper in {} gave none",
                        path.display()
                    ))
                }
            }
        }
    }
    Ok((RegistryAuth::Anonymous, note))
}
