//! Certificates for tests, made by openssl: each is a `.pem` with its `.key`.

use std::path::PathBuf;
use std::process::Command;

use crate::folder::Folder;
use crate::{ServerError, process};

const OWNER: &str = "openssl";
const NEW: [&str; 5] = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"];

/// Two authorities, `ca` and `other`; signed by `ca`, for 127.0.0.1: `server`, `client`, and `expired`, which was valid
/// until yesterday. `other` has signed nothing.
pub struct Certificates(Folder);

impl Certificates {
    /// Makes them.
    pub fn new() -> Result<Self, ServerError> {
        let folder = Folder::new(OWNER)?;
        let openssl = |arguments: &[&str]| {
            let mut command = Command::new("openssl");
            command.current_dir(folder.path()).args(arguments);
            process::run(OWNER, arguments[0], command)
        };
        for name in ["ca", "other"] {
            let (key, pem, subject) = (format!("{name}.key"), format!("{name}.pem"), format!("/CN={name}"));
            let own = ["-keyout", &key, "-out", &pem, "-subj", &subject, "-days", "2"];
            openssl(&[&["req", "-x509"], &NEW[..], &own].concat())?;
        }
        folder.write(OWNER, "san.cnf", "subjectAltName=IP:127.0.0.1\n")?;
        for (name, days) in [("server", "2"), ("client", "2"), ("expired", "-1")] {
            let (key, csr, pem) = (format!("{name}.key"), format!("{name}.csr"), format!("{name}.pem"));
            let subject = format!("/CN={name}");
            openssl(&[&["req"], &NEW[..], &["-keyout", &key, "-out", &csr, "-subj", &subject]].concat())?;
            let by = ["-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-extfile", "san.cnf"];
            openssl(&[&["x509", "-req", "-in", &csr, "-out", &pem, "-days", days], &by[..]].concat())?;
            // Java reads key and certificate from one file.
            let read = |file: &str| {
                let path = folder.join(file);
                std::fs::read_to_string(&path).map_err(|source| ServerError::File { server: OWNER, path, source })
            };
            folder.write(OWNER, &format!("{name}.both.pem"), &(read(&key)? + &read(&pem)?))?;
        }
        Ok(Certificates(folder))
    }

    /// A file of them.
    pub fn path(&self, file: &str) -> PathBuf {
        self.0.join(file)
    }
}
