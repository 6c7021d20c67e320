fn main() {
    let a: Vec<String> = std::env::args().collect();
    let s = runner_store::Store::open(a[1].as_ref()).unwrap();
    let src = runner_store::Source::detect(a[3].as_ref()).unwrap();
    eprintln!("{src}");
    let t = std::time::Instant::now();
    let r = s.import(&a[2], &src, &mut |_| {});
    match r {
        Ok(i) => eprintln!("{i:?} {:?}", t.elapsed()),
        Err(e) => eprintln!("ERR {e}"),
    }
    let t = std::time::Instant::now();
    let l = s.resolve(&a[2]).unwrap().unwrap();
    eprintln!("resolve {:?}", t.elapsed());
    println!("{}", l.layers()[0].display());
}
