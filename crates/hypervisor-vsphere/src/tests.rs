//! Against vcsim, govmomi's simulator of vCenter. Needs the packages golang-go and
//! golang-github-vmware-govmomi-dev.

mod vcsim;

use anyhow::Result;
use hypervisor_conformance::conform;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn conforms_against_vcsim() -> Result<()> {
    conform(&mut vcsim::Vcsim::start().await?).await
}
