//! Good and bad samples for every rule of tidy.

use super::*;

fn texts(path: &str, text: &str) -> Vec<String> {
    check(Path::new(path), text).into_iter().map(|problem| format!("{}: {}", problem.line, problem.text)).collect()
}

#[test]
fn aya_stays_in_the_datapath() {
    let text = "//! x\nuse aya::Ebpf;\n";
    assert_eq!(texts("forwarder/src/controller.rs", text), ["2: `aya` outside forwarder/src/datapath, bench/src/load"]);
    assert_eq!(texts("forwarder/src/datapath/load.rs", text), [""; 0]);
    assert_eq!(texts("forwarder/src/datapath.rs", text).len(), 1, "a path is compared by components");
}

#[test]
fn aya_ebpf_stays_in_the_bpf_body() {
    let text = "//! x\nuse aya_ebpf::maps::Array;\n";
    assert_eq!(texts("forwarder-ebpf/src/nat.rs", text), ["2: `aya_ebpf` outside forwarder-ebpf/src/bpf"]);
    assert_eq!(texts("forwarder-ebpf/src/bpf/maps.rs", text), [""; 0]);
}

#[test]
fn unsafe_stays_in_its_three_places() {
    let text = "//! x\nfn f() {\n    unsafe { g() }\n}\n";
    for allowed in ["forwarder/src/datapath/a.rs", "forwarder-ebpf/src/bpf/a.rs", "forwarder-ebpf/src/abi/a.rs"] {
        assert_eq!(texts(allowed, text), [""; 0]);
    }
    for refused in
        ["forwarder/src/main.rs", "forwarder-ebpf/src/wire/ipv4.rs", "tests/tests/netns.rs", "bench/src/main.rs"]
    {
        assert_eq!(texts(refused, text).len(), 1, "{refused}");
    }
}

#[test]
fn words_in_comments_and_strings_are_free() {
    let text = "//! aya is wrapped, unsafe is not here\n#![forbid(unsafe_code)]\nconst A: &str = \"unsafe aya TODO\"; // aya\n";
    assert_eq!(texts("forwarder/src/main.rs", text), [""; 0]);
}

#[test]
fn a_file_says_what_it_is() {
    for good in ["//! x\n", "#![no_std]\n\n//! x\n", "#![allow(\n    a,\n)]\n//! x\n", "\n//! x\n"] {
        assert_eq!(texts("xtask/src/a.rs", good), [""; 0], "{good}");
    }
    for bad in ["", "use a;\n//! x\n", "// x\n", "/// x\nfn f() {}\n"] {
        assert_eq!(texts("xtask/src/a.rs", bad).len(), 1, "{bad}");
    }
}

#[test]
fn nothing_is_left_for_later() {
    let bad =
        "//! x\n// TODO: y\nfn f() {\n    todo!()\n}\n#[ignore]\nfn g() {\n    unimplemented! ()\n}\n/* FIXME */\n";
    let lines: Vec<_> = check(Path::new("xtask/src/a.rs"), bad).iter().map(|problem| problem.line).collect();
    assert_eq!(lines, [2, 4, 6, 8, 10]);
    let good = "//! x\n#[ignore = \"needs two hosts\"]\nfn f() {}\nconst N: &str = \"todo!\";\n// mastodon\n";
    assert_eq!(texts("xtask/src/a.rs", good), [""; 0]);
}

#[test]
fn files_and_functions_are_short() {
    let long_file = format!("//! x\n{}", "const A: u8 = 1;\n".repeat(400));
    assert_eq!(texts("xtask/src/a.rs", &long_file), ["1: 401 lines before the tests, at most 400"]);
    assert_eq!(texts("tests/tests/netns.rs", &long_file), [""; 0]);
    assert_eq!(texts("tests/kit/src/lib.rs", &long_file).len(), 1);

    let function = |lines: usize| format!("//! x\npub fn f(a: [u8; 4]) -> u8 {{\n{}}}\n", "    g();\n".repeat(lines));
    assert_eq!(texts("xtask/src/a.rs", &function(48)), [""; 0]);
    assert_eq!(texts("xtask/src/a.rs", &function(49)), ["2: function `f` has 51 lines, at most 50"]);
    let in_tests = function(60).replace("pub fn", "#[cfg(test)]\nmod tests {\nfn") + "}\n";
    assert_eq!(texts("xtask/src/a.rs", &in_tests), [""; 0]);
}

#[test]
fn a_declaration_has_no_body() {
    let names = |code: &str| functions(code).into_iter().map(|function| function.name).collect::<Vec<_>>();
    assert_eq!(names("trait T { fn a(&self) -> u8; fn b(&self) { c() } }"), ["b"]);
    assert_eq!(names("struct S { f: fn (u8) -> u8, }\nfn g<F>(f: F) where F: Fn(u8) -> u8, { }"), ["g"]);
}
