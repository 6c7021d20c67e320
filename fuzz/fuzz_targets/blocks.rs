//! What `guest-exec` and `guest-enter` are told. The first byte chooses: decode the rest, or encode what it describes.

#![no_main]

use libfuzzer_sys::arbitrary::{Arbitrary, Result, Unstructured};
use libfuzzer_sys::fuzz_target;
use runner_inside::enter::{Mount, Request};
use runner_inside::exec::{Program, Stdin};

fuzz_target!(|bytes: &[u8]| {
    let Some((choice, rest)) = bytes.split_first() else { return };
    match choice % 4 {
        0 => {
            if let Ok(program) = Program::decode(rest) {
                check_program(&program);
            }
        }
        1 => {
            if let Ok(request) = Request::decode(rest) {
                check_request(&request);
            }
        }
        2 => {
            if let Ok(program) = program(&mut Unstructured::new(rest)) {
                check_program(&program);
            }
        }
        _ => {
            if let Ok(request) = request(&mut Unstructured::new(rest)) {
                check_request(&request);
            }
        }
    }
});

fn check_program(program: &Program) {
    let framed = program.encode();
    let (length, block) = framed.split_first_chunk::<8>().expect("eight bytes of length");
    assert_eq!(u64::from_le_bytes(*length), block.len() as u64);
    assert_eq!(Program::decode(block).as_ref(), Ok(program));
    // No part of a block is one.
    assert!(Program::decode(&block[..block.len() - 1]).is_err());
}

fn check_request(request: &Request) {
    let block = request.encode();
    assert_eq!(Request::decode(&block).as_ref(), Ok(request));
    assert!(Request::decode(&block[..block.len() - 1]).is_err());
}

fn program(input: &mut Unstructured<'_>) -> Result<Program> {
    let (root, directory, uid, gid, groups) = Arbitrary::arbitrary(input)?;
    let stdin = match u8::arbitrary(input)? % 3 {
        0 => Stdin::Null,
        1 => Stdin::Rest,
        _ => Stdin::Terminal(Arbitrary::arbitrary(input)?),
    };
    let (arguments, environment) = Arbitrary::arbitrary(input)?;
    Ok(Program { root, directory, uid, gid, groups, stdin, arguments, environment })
}

fn request(input: &mut Unstructured<'_>) -> Result<Request> {
    let (furnish, mounts, directories, files): (bool, Vec<(Vec<u8>, bool)>, _, _) = Arbitrary::arbitrary(input)?;
    let mounts = mounts.into_iter().map(|(target, directory)| Mount { target, directory }).collect();
    Ok(Request { furnish, mounts, directories, files })
}
