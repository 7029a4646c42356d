use readplan::*;
use std::path::Path;
fn walk(d:&Path, out:&mut Vec<(String,Vec<u8>)>){ for e in std::fs::read_dir(d).unwrap(){ let p=e.unwrap().path(); if p.is_dir(){walk(&p,out)} else if p.extension().is_some_and(|x|x=="yar"||x=="yara"){ out.push((p.display().to_string(), std::fs::read(&p).unwrap())) } } }
fn main(){ let dir=std::env::args().nth(1).unwrap(); let mut v=vec![]; walk(Path::new(&dir),&mut v); v.sort();
 let s:Vec<Source>=v.iter().map(|(n,t)|Source{namespace:n,text:t}).collect(); let plan=Plan::compile(&s).unwrap();
 println!("rules {} residents {} literals {} filter {} B", plan.len(), plan.residents().len(), plan.filter().len(), plan.filter().to_bytes().len());
 let heads:[(&str,&[u8]);6]=[("text",b"#!/bin/sh\n"),("pe",b"MZ\x90\0"),("elf",b"\x7fELF\x02\x01\x01"),("pdf",b"%PDF-1.4"),("png",b"\x89PNG\r\n\x1a\n"),("zip",b"PK\x03\x04")];
 let mut seen=std::collections::BTreeMap::<usize,Vec<String>>::new();
 for (name,h) in heads { for size in [20_000u64, 300_000, 5_000_000, 60_000_000] { let mut head=h.to_vec(); head.resize(512, b' '); let hits=Hits::default(); let hb=Head{bytes:&head,size}; let known=Known{size,bytes:&hb,hits:&hits,search:None}; let open=plan.open(&known,&|_|None); let wants=plan.wants(&open,&known,&|_|Some(false)); 
   let whole=wants.iter().filter(|w|w.whole).count(); let probes=open.iter().filter(|r|!plan.probes_of(**r).is_empty()).count();
   println!("{name} {size}: open {} with probes {} whole {}", open.len(), probes, whole);
   for (r,w) in open.iter().zip(&wants) { if w.whole { seen.entry(*r).or_default().push(format!("{name}{}",size/1000)); } } } }
 for (r,k) in &seen { println!("---- {} {:?}\n{}", plan.name(*r).1, k, String::from_utf8_lossy(plan.text(*r))); }
}
