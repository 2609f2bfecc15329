//! Names of a kernel's addresses: from its System.map, or from the symbol table of its ELF.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use object::{Object, ObjectSymbol, SymbolKind};

/// Files that are larger are none of these.
const MAX_SIZE: u64 = 1 << 30;

/// A System.map with fewer names is a placeholder: distributions ship one that says where the real one is.
const FEWEST: usize = 16;

/// Names of addresses, of a kernel that runs where it was linked to run.
#[derive(Debug, Clone, Default)]
pub struct Symbols {
    /// By address.
    names: Vec<(u64, String)>,
}

impl Symbols {
    /// What is known of the kernel in this file: by `System.map-VERSION` beside a `vmlinuz-VERSION`, by `System.map` beside any
    /// kernel, or by the kernel itself, if it is an ELF with symbols. Nothing, where there is none of them.
    pub fn of_kernel(kernel: &Path) -> Self {
        let file_name = kernel.file_name().unwrap_or_default().to_string_lossy();
        let version = file_name.split_once('-').map(|(_, version)| version);
        let maps = version
            .map(|version| format!("System.map-{version}"))
            .into_iter()
            .chain([String::from("System.map")]);
        for map in maps {
            if let Ok(symbols) = Self::from_system_map(&kernel.with_file_name(map))
                && symbols.names.len() >= FEWEST
            {
                return symbols;
            }
        }
        Self::from_elf(kernel).unwrap_or_default()
    }

    /// Whether no name is known.
    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    /// Reads a System.map: lines of an address in hexadecimal digits, a type and a name.
    fn from_system_map(path: &Path) -> io::Result<Self> {
        let bytes = read(path)?;
        let text = String::from_utf8_lossy(&bytes);
        let line = |line: &str| {
            let mut words = line.split_ascii_whitespace();
            let address = u64::from_str_radix(words.next()?, 16).ok()?;
            let code = words.next()?.eq_ignore_ascii_case("t") || line.contains(" W ");
            code.then_some((address, words.next()?.to_owned()))
        };
        Ok(Self::sorted(text.lines().filter_map(line).collect()))
    }

    fn from_elf(path: &Path) -> io::Result<Self> {
        let mut head = [0; 4];
        File::open(path)?.read_exact(&mut head)?;
        if head != *b"\x7fELF" {
            return Ok(Self::default());
        }
        let bytes = read(path)?;
        let file = object::File::parse(&*bytes).map_err(io::Error::other)?;
        let names = file.symbols().filter_map(|symbol| {
            let is_code = matches!(
                symbol.kind(),
                SymbolKind::Text | SymbolKind::Label | SymbolKind::Unknown
            );
            let is_one = is_code && symbol.is_definition();
            let name = symbol.name().ok().filter(|name| !name.is_empty())?;
            is_one.then(|| (symbol.address(), name.to_owned()))
        });
        Ok(Self::sorted(names.collect()))
    }

    fn sorted(mut names: Vec<(u64, String)>) -> Self {
        names.sort_by_key(|(address, _)| *address);
        Self { names }
    }

    /// The name of an address, as `name+0x12`.
    pub fn name(&self, address: u64) -> Option<String> {
        let after = self.names.partition_point(|(start, _)| *start <= address);
        let (start, name) = self.names.get(after.checked_sub(1)?)?;
        let offset = address - start;
        // Far behind the last symbol there is something else.
        let is_inside = self.names.get(after).is_some() || offset < 1 << 20;
        match offset {
            _ if !is_inside => None,
            0 => Some(name.clone()),
            offset => Some(format!("{name}+{offset:#x}")),
        }
    }
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(MAX_SIZE).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn a_system_map_beside_the_kernel_names_addresses() {
        let folder = tempfile::tempdir().unwrap();
        let mut map = String::from(
            "ffffffff81000000 T startup_64\nffffffff81000100 t idle\nffffffff82000000 D data\n",
        );
        for at in 0..20 {
            map += &format!("ffffffff8100{:04x} T fill{at}\n", 0x1000 + at * 16);
        }
        let kernel = folder.path().join("vmlinuz-6.1");
        fs::write(&kernel, "MZ..").unwrap();
        assert!(Symbols::of_kernel(&kernel).is_empty());
        fs::write(
            folder.path().join("System.map-6.1"),
            "ffffffffffffffff B The real System.map is elsewhere\n",
        )
        .unwrap();
        assert!(Symbols::of_kernel(&kernel).is_empty(), "a placeholder");
        fs::write(folder.path().join("System.map-6.1"), map).unwrap();
        let symbols = Symbols::of_kernel(&kernel);
        assert_eq!(symbols.name(0xffff_ffff_8100_0000).unwrap(), "startup_64");
        assert_eq!(symbols.name(0xffff_ffff_8100_0105).unwrap(), "idle+0x5");
        assert_eq!(symbols.name(0x1000), None);
        assert_eq!(symbols.name(0xffff_ffff_f000_0000), None);
    }
}
