// Opens every page of a folder in Chromium, wide and narrow, light and dark; prints what is wrong with them as JSON.
// node check.mjs FOLDER [FOLDER_OF_PICTURES]
import { mkdirSync, readdirSync } from "node:fs";
import { join } from "node:path";
import { pathToFileURL } from "node:url";
import chromium from "@sparticuz/chromium";
import puppeteer from "puppeteer-core";

const [folder, pictures] = process.argv.slice(2), root = pathToFileURL(folder).href.replace(/\/*$/, "/");
const faults = [], looked = [], ids = {}, links = [];
let browser;
try {
  browser = await puppeteer.launch({ args: chromium.args, executablePath: await chromium.executablePath(), headless: "shell" });
} catch (error) {
  console.log(JSON.stringify({ unable: error.message }));
  process.exit(0);
}
if (pictures) mkdirSync(pictures, { recursive: true });
for (const name of readdirSync(folder).filter(name => name.endsWith(".html")).sort())
  for (const width of [390, 1400])
    for (const scheme of ["light", "dark"]) {
      const page = await browser.newPage(), at = `${name} at ${width}, ${scheme}`;
      page.on("console", said => ["error", "warn"].includes(said.type()) && faults.push(`${at}: console: ${said.text()}`));
      page.on("pageerror", error => faults.push(`${at}: error: ${error.message}`));
      page.on("request", asked => /^(data|blob):/.test(asked.url()) || asked.url().startsWith(root) || faults.push(`${at}: asks for ${asked.url()}`));
      page.on("requestfailed", asked => faults.push(`${at}: failed: ${asked.url().slice(0, 200)}`));
      await page.setViewport({ width, height: 900 });
      await page.emulateMediaFeatures([{ name: "prefers-color-scheme", value: scheme }]);
      await page.goto(root + name, { waitUntil: "load" });
      await page.evaluate(() => document.querySelectorAll("details").forEach(each => (each.open = true)));
      for (const box of await page.$$("input.all")) await box.click();
      const found = await page.evaluate(() => ({
        hidden: [...document.querySelectorAll("td")].filter(cell => !cell.offsetWidth).length,
        reach: document.documentElement.scrollWidth,
        paper: getComputedStyle(document.body).backgroundColor,
        links: [...document.querySelectorAll("a[href], img[src], script[src]")].map(each => each.href || each.src),
        ids: [...document.querySelectorAll("[id]:not(canvas)")].map(each => each.id),
        broken: [...document.images].filter(image => !image.naturalWidth).map(image => image.src),
        mute: [...document.querySelectorAll(".stage")].filter(stage => !stage.querySelector("canvas")).length,
      }));
      if (found.reach > width) faults.push(`${at}: ${found.reach} pixels wide`);
      if (found.hidden) faults.push(`${at}: ${found.hidden} cells stay hidden`);
      if (found.mute) faults.push(`${at}: ${found.mute} chains are not drawn`);
      faults.push(...found.broken.map(source => `${at}: no picture ${source}`));
      faults.push(...found.ids.filter((id, place) => found.ids.indexOf(id) !== place).map(id => `${at}: two elements #${id}`));
      ids[root + name] = found.ids;
      links.push(...found.links.map(link => [at, link]));
      looked.push([name, width, scheme, found.paper]);
      if (pictures) await page.screenshot({ path: join(pictures, `${name}.${width}.${scheme}.png`), fullPage: true });
      await page.close();
    }
await browser.close();
for (const [at, link] of links) {
  const [target, id] = link.split("#");
  if (id && !ids[target]?.includes(decodeURIComponent(id))) faults.push(`${at}: leads nowhere: ${link}`);
}
console.log(JSON.stringify({ faults: [...new Set(faults)], looked, links: [...new Set(links.map(([, link]) => link.split("#")[0]))] }));
