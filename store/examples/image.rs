//! Makes the image of a source, or finds it in a cache: `image SOURCE FOLDER [NAME]`.

#![allow(clippy::print_stdout, reason = "the example's output")]

use ampoule_store::{Limits, Source, Store};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(source), Some(folder)) = (arguments.next(), arguments.next()) else {
        return Err("usage: image SOURCE FOLDER [NAME]".into());
    };
    let source = Source::open(source, arguments.next().as_deref())?;
    let store = Store::open(folder)?;
    let image = store.get(&source, Limits::default(), &mut |_| {})?;
    let origin = if image.was_cached() { "found" } else { "made" };
    println!("{:?}: {origin} {}", source.kind(), image.path().display());
    println!("{:#?}", image.config());
    Ok(())
}
