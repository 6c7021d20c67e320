//! Images made on the spot from what the lab host has: its static busybox, its bash and C library.

use std::fs;
use std::sync::{Once, OnceLock};

use serde_json::{Value, json};

use crate::host::{run, sh};
use crate::lab::FOLDER;

/// A busybox that says it is Alpine; a root tree.
pub(crate) fn alpine() -> &'static str {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        busybox_tree("alpine", "alpine");
        import("alpine:latest", "alpine");
    });
    "alpine:latest"
}

/// bash and coreutils with the C library they need, and busybox; a root tree.
pub(crate) fn debian() -> &'static str {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        debian_tree("debian");
        import("lab/debian:13", "debian");
        import("hello-runner:latest", "debian");
        import("node:22", "debian");
    });
    "lab/debian:13"
}

/// busybox with `USER node` (1000:1000, `/home/node`); an OCI layout.
pub(crate) fn node() -> &'static str {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        busybox_tree("node-tree", "debian");
        let layer = pack("node-tree");
        oci_layout("node-oci", &layer, &json!({"User": "node", "Env": ["PATH=/bin"]}));
        import("lab/node:latest", "node-oci");
    });
    "lab/node:latest"
}

/// busybox with Env, WorkingDir, Entrypoint and Cmd; an archive of `docker save`.
pub(crate) fn configured() -> &'static str {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        busybox_tree("configured-tree", "debian");
        sh(&format!("mkdir -p {FOLDER}/images/configured-tree/srv/app"));
        let layer = pack("configured-tree");
        docker_archive(
            "configured.tar",
            &layer,
            &json!({
                "Env": ["FROM_IMAGE=yes", "PATH=/opt/image/bin:/bin", "HOME=/image-home"],
                "WorkingDir": "/srv/app", "Entrypoint": ["/bin/echo", "entry"], "Cmd": ["cmd"],
            }),
        );
        import("lab/configured:1", "configured.tar");
    });
    "lab/configured:1"
}

/// busybox without PATH, /etc/passwd or a shell in a known place.
pub(crate) fn bare() -> &'static str {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        sh(&format!(
            "cd {FOLDER}; rm -rf images/bare; mkdir -p images/bare/usr/bin images/bare/etc; \
             cp \"$(command -v busybox)\" images/bare/usr/bin/busybox; ln -s busybox images/bare/usr/bin/cat"
        ));
        import("lab/bare:latest", "bare");
    });
    "lab/bare:latest"
}

/// The layer of an image with busybox, as a tar archive.
pub(crate) fn busybox_layer() -> Vec<u8> {
    static LAYER: OnceLock<Vec<u8>> = OnceLock::new();
    let make = || {
        busybox_tree("pulled-tree", "debian");
        fs::read(pack("pulled-tree")).expect("it was just made")
    };
    LAYER.get_or_init(make).clone()
}

#[track_caller]
fn import(reference: &str, source: &str) {
    run(["runnerctl", "image", "import", reference, &format!("{FOLDER}/images/{source}")]).expect(0);
}

fn busybox_tree(name: &str, id: &str) {
    sh(&format!(
        r#"mkdir -p {FOLDER}/images; cd {FOLDER}/images; rm -rf {name}; mkdir -p {name}/bin {name}/etc {name}/root \
           {name}/home/node {name}/tmp; cd {name}
        cp "$(command -v busybox)" bin/busybox
        for applet in $(bin/busybox --list); do test -e bin/$applet || ln -s busybox bin/$applet; done
        chmod 1777 tmp; chown 1000:1000 home/node
        printf 'ID={id}\nNAME=Lab\n' >etc/os-release
        printf 'root:x:0:0:root:/root:/bin/sh\nnode:x:1000:1000::/home/node:/bin/sh\n' >etc/passwd
        printf 'root:x:0:\nnode:x:1000:\nextra:x:2000:node\n' >etc/group"#
    ));
}

fn debian_tree(name: &str) {
    sh(&format!(
        r#"mkdir -p {FOLDER}/images; cd {FOLDER}/images; rm -rf {name}
        mkdir -p {name}/usr/bin {name}/usr/lib {name}/usr/lib64 {name}/etc {name}/root {name}/tmp {name}/opt {name}/var/tmp {name}/run \
          {name}/home {name}/mnt {name}/srv {name}/proc {name}/sys {name}/dev
        cd {name}; chmod 1777 tmp var/tmp; ln -s usr/bin bin; ln -s usr/lib lib; ln -s usr/lib64 lib64
        cp "$(command -v busybox)" usr/bin/busybox
        for program in bash cat chmod chown cp cut date dd dirname basename echo env false head id ln ls mkdir mkfifo mv \
            nproc od printenv printf pwd readlink realpath rm seq sleep sort stat tail tee test touch tr true uname uniq \
            wc whoami setpriv unshare mount umount grep sed nohup setsid timeout kill; do
          path=$(command -v -- $program) || continue
          case $path in /*) ;; *) path=/usr/bin/$program ;; esac
          cp "$path" usr/bin/$program
          for library in $(ldd "$path" | grep -o '/[^ )]*'); do
            folder=$(dirname "usr/${{library#/usr/}}")
            mkdir -p "$folder"; cp -Ln "$library" "$folder/" || true
          done
        done
        ln -sf bash usr/bin/sh
        printf 'ID=debian\nVERSION_ID=13\nNAME="Lab Debian"\nPRETTY_NAME="Lab Debian"\n' >etc/os-release
        printf 'root:x:0:0:root:/root:/bin/bash\nbuilder:x:1001:1001::/home/builder:/bin/bash\n' >etc/passwd
        printf 'root:x:0:\nbuilder:x:1001:\n' >etc/group"#
    ));
}

/// One layer of a tree, owned by root but for the home of `node`.
fn pack(tree: &str) -> String {
    let layer = format!("{FOLDER}/images/{tree}.layer.tar");
    sh(&format!("tar --numeric-owner --sort=name -C {FOLDER}/images/{tree} -cf {layer} ."));
    layer
}

fn digest(path: &str) -> String {
    sh(&format!("sha256sum <{path} | cut -d' ' -f1"))
}

fn size(path: &str) -> u64 {
    fs::metadata(path).expect("it was just made").len()
}

fn config(layer: &str, config: &Value) -> Value {
    json!({
        "architecture": "amd64", "os": "linux", "config": config,
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{}", digest(layer))]},
    })
}

/// image-spec, "OCI Image Layout Specification".
fn oci_layout(name: &str, layer: &str, settings: &Value) {
    let folder = format!("{FOLDER}/images/{name}");
    sh(&format!("rm -rf {folder}; mkdir -p {folder}/blobs/sha256"));
    let add = |media_type: &str, path: &str| {
        let digest = digest(path);
        sh(&format!("cp {path} {folder}/blobs/sha256/{digest}"));
        json!({"mediaType": media_type, "digest": format!("sha256:{digest}"), "size": size(path)})
    };
    let add_json = |media_type: &str, value: &Value| {
        let path = format!("{folder}/new.json");
        fs::write(&path, value.to_string()).expect("the folder was just made");
        let descriptor = add(media_type, &path);
        fs::remove_file(&path).expect("it was just written");
        descriptor
    };
    let manifest = json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": add_json("application/vnd.oci.image.config.v1+json", &config(layer, settings)),
        "layers": [add("application/vnd.oci.image.layer.v1.tar", layer)],
    });
    let index = json!({
        "schemaVersion": 2, "manifests": [add_json("application/vnd.oci.image.manifest.v1+json", &manifest)],
    });
    fs::write(format!("{folder}/index.json"), index.to_string()).expect("the folder was just made");
    fs::write(format!("{folder}/oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).expect("the folder was just made");
}

/// The archive format of `docker save` before it became an OCI layout.
fn docker_archive(name: &str, layer: &str, settings: &Value) {
    let folder = format!("{FOLDER}/images/{name}.d");
    sh(&format!("rm -rf {folder}; mkdir -p {folder}; cp {layer} {folder}/layer.tar"));
    fs::write(format!("{folder}/config"), config(layer, settings).to_string()).expect("the folder was just made");
    let config = format!("{}.json", digest(&format!("{folder}/config")));
    let id = digest(layer);
    sh(&format!("cd {folder}; mv config {config}; mkdir {id}; mv layer.tar {id}/"));
    let manifest = json!([{"Config": config, "RepoTags": ["lab/configured:1"], "Layers": [format!("{id}/layer.tar")]}]);
    fs::write(format!("{folder}/manifest.json"), manifest.to_string()).expect("the folder was just made");
    sh(&format!("tar -C {folder} -cf {FOLDER}/images/{name} {config} {id} manifest.json; rm -rf {folder}"));
}
